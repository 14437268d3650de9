import pytest

from ragbench.evaluation import likelihood
from ragbench.evaluation.answer_metrics import CITATION
from ragbench.evaluation.grounding import AnswerWithContexts, grounding
from ragbench.evaluation.grounding_model import Model, Term, fitted, logits, probabilities
from ragbench.retrieval.encoder import open_encoder

QUESTION = "Who wrote the first modules for Monty, and when?"
CONTEXTS = (
    "In 1990, Guido van Rossum published 14 modules for Monty at the CWI in Amsterdam. The modules are not stable.",
    "shutil.copytree copies a directory tree. It creates all folders that the destination needs, and returns it.",
)
SUPPORTED = "Guido van Rossum published 14 modules for Monty in 1990. [monty.history]"
UNSUPPORTED = {
    "another number": "Guido van Rossum published 27 modules for Monty in 1990. [monty.history]",
    "an invented name": "Guido van Rossum and Linus Torvalds published 14 modules for Monty in 1990. [monty.history]",
    "a fact from elsewhere": "Monty was taught to two hundred school classes in the mountains of Peru.",
    "another subject": "Bananas are rich in potassium and grow in warm countries.",
}
KINDS = [pytest.param(None, id="light"), pytest.param("SmolLM2-135M-Instruct", id="full")]


@pytest.fixture
def encoder(real_cache, monkeypatch):
    monkeypatch.setenv("RAGBENCH_CACHE", str(real_cache))
    return open_encoder("all-MiniLM-L6-v2", device="cpu", dtype="float32")


def score(answers, encoder, model=None, contexts=CONTEXTS, question=QUESTION):
    items = [AnswerWithContexts(question, answer, contexts) for answer in answers]
    return grounding(items, encoder, model=model, device="cpu", dtype="float32")


@pytest.mark.parametrize("model", KINDS)
def test_a_supported_answer_scores_far_above_every_unsupported_one(encoder, model):
    supported, *others = (each.score for each in score([SUPPORTED, *UNSUPPORTED.values()], encoder, model))
    values = dict(zip(UNSUPPORTED, others, strict=True))
    assert supported > fitted("light" if model is None else "full").threshold
    assert {fault: value for fault, value in values.items() if value > supported - 0.05} == {}
    assert values["a fact from elsewhere"] < 0.3
    assert values["another subject"] < 0.1


@pytest.mark.parametrize("model", KINDS)
def test_a_negation_against_the_passages_costs_more_than_other_words(encoder, model):
    same, denied, reworded = score(
        ["The modules are not stable.", "The modules are stable.", "The modules aren't stable."], encoder, model
    )
    assert same.score > denied.score + 0.05
    assert reworded.score > denied.score


def test_the_sentences_rejoin_to_the_answer_and_the_unsupported_one_is_lowest(encoder):
    answer = f"{SUPPORTED} {UNSUPPORTED['another subject']} It creates all folders that the destination needs. [a.b]"
    (found,) = score([answer], encoder)
    assert " ".join(text for text, _ in found.sentences).split() == CITATION.sub(" ", answer).split()
    assert min(found.sentences, key=lambda each: each[1])[0] == UNSUPPORTED["another subject"]
    alone = [each.score for each in score([text for text, _ in found.sentences], encoder)]
    assert [value for _, value in found.sentences] == pytest.approx(alone)
    assert min(alone) < found.score < max(alone)


@pytest.mark.parametrize("answer", ["", " ", "[monty.history]", "[none] [shutil.copytree]", "..."])
@pytest.mark.parametrize("model", KINDS)
def test_an_answer_that_says_nothing_has_no_score(encoder, answer, model):
    (found,) = score([answer], encoder, model)
    assert (found.score, found.sentences) == (None, ())


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("contexts", [(), ("", "  ")])
def test_without_contexts_nothing_is_supported(encoder, contexts, model):
    (found,) = score([SUPPORTED], encoder, model, contexts)
    assert (found.score, [value for _, value in found.sentences]) == (0.0, [0.0])


def test_citations_need_no_support(encoder):
    with_citation, without = score([SUPPORTED, CITATION.sub("", SUPPORTED)], encoder)
    assert with_citation == without


@pytest.mark.parametrize("model", KINDS)
def test_a_score_depends_on_its_own_answer_only(encoder, model):
    together = score([SUPPORTED, *UNSUPPORTED.values()], encoder, model)
    (alone,) = score([SUPPORTED], encoder, model)
    assert together[0].score == pytest.approx(alone.score, abs=1e-4)


def test_the_order_of_passages_does_not_matter_to_the_light_score(encoder):
    (forwards,) = score([SUPPORTED], encoder)
    (backwards,) = score([SUPPORTED], encoder, contexts=CONTEXTS[::-1])
    assert forwards.score == pytest.approx(backwards.score)


def test_an_empty_question_and_a_passage_of_any_length_are_scored(encoder):
    (found,) = score([SUPPORTED], encoder, "SmolLM2-135M-Instruct", ("word " * 6000, *CONTEXTS), question="")
    assert 0 <= found.score <= 1


def test_likelihoods_are_read_from_the_cache_the_second_time(encoder, monkeypatch):
    answers = [SUPPORTED, UNSUPPORTED["another number"]]
    first = score(answers, encoder, "SmolLM2-135M-Instruct")
    monkeypatch.setattr(likelihood, "_forward", lambda *_: pytest.fail("the cache holds every value"))
    assert score(answers, encoder, "SmolLM2-135M-Instruct") == first


def test_no_answers_give_no_scores(encoder):
    assert score([], encoder) == []


@pytest.mark.parametrize("kind", ["light", "full"])
def test_the_fitted_scores_have_signs_that_make_sense_and_tell_their_agreement(kind):
    model = fitted(kind)
    against = {"foreign_names", "foreign_numbers", "negation"}
    assert {name for name, term in model.terms.items() if term.weight < 0} == against
    assert 0 < model.threshold < 1
    assert [each.data for each in model.agreement] == ["ExpertQA claims", "MTRAG answers"]
    assert all(0.5 < each.balanced_accuracy < 1 and 0.5 < each.auroc < 1 for each in model.agreement)
    assert all(0 < each.supported < each.n for each in model.agreement)


def test_a_logit_is_the_intercept_and_the_weighted_standardised_features():
    model = Model(0.5, {"a": Term(mean=1.0, scale=2.0, weight=3.0)}, 0.5, ())
    assert logits(model, [{"a": 1.0, "unused": 9.0}, {"a": 3.0}]).tolist() == [0.5, 3.5]
    assert probabilities(logits(model, [{"a": 1 - 1 / 3}])).tolist() == [0.5]
