from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.beir import read_collection
from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.diagnosis.counterfactual import Trial, answer_counterfactually, each_question, gold_of, oracle_run
from ragbench.evaluation.evaluate import Questions
from ragbench.generation.answers import Answer
from ragbench.generation.generate import Generator, answer_run
from ragbench.generation.prompts import CLOSED_BOOK
from ragbench.retrieval.runs import Run

RUN: Run = {"q1": {"p3": 2.0, "p1": 1.0}, "q2": {"p4": 2.0, "p1": 1.0}, "q3": {"p1": 1.0}}


@pytest.fixture
def toy(toy_folder: Path) -> Collection:
    return read_collection(toy_folder)


@pytest.fixture
def generator(tiny_generator: Path) -> Generator:
    return Generator(model=str(tiny_generator), contexts=1, max_context_tokens=40, max_new_tokens=6, dtype="float32")


def questions_of(collection: Collection) -> Questions:
    return {split: [collection.queries[name] for name in qrels] for split, qrels in collection.qrels.items()}


def small(queries: list[Query], qrels: dict[str, dict[str, int]], passages: dict[str, str]) -> Collection:
    rows = [(name, "", text, f"d-{name}") for name, text in passages.items()]
    return Collection("small", corpus_from_rows(rows), {q.id: q for q in queries}, {"dev": qrels})


def audited(collection: Collection, run: Run, generator: Generator, questions: Questions | None = None) -> Trial:
    """Answer all questions from what the run has for them, then counterfactually."""
    questions = questions_of(collection) if questions is None else questions
    asked = [query for _, query in each_question(questions)]
    answered = {answer.query_id: answer for answer in answer_run(collection, asked, run, generator)}
    return answer_counterfactually(collection, questions, run, answered, generator)


def test_the_questions_come_with_their_splits_in_order(toy):
    found = [(split, query.id) for split, query in each_question(questions_of(toy))]
    assert found == [("train", "q1"), ("test", "q2"), ("test", "q3")]


def test_passages_of_relevance_zero_are_not_gold():
    collection = small([Query("q", "?")], {"q": {"a": 0, "b": 2, "c": 1, "d": -1}}, dict.fromkeys("abcd", "text"))
    assert gold_of(collection, "dev", collection.queries["q"]) == {"b": 2, "c": 1}


@pytest.mark.parametrize(
    ("tags", "needs", "gold", "found"),
    [
        ((), (), {"a": 1}, ["a"]),
        ((), (), {"a": 1, "b": 3, "c": 3}, ["b"]),  # alternatives: the most relevant, the first of equal ones
        (("multi",), (), {"a": 1, "b": 2}, ["a", "b"]),
        ((), (("a", "b"), ("c",)), {"a": 1, "b": 2, "c": 1}, ["b", "c"]),
        ((), (("a",), ("a", "b")), {"a": 1, "b": 1}, ["a"]),  # one passage meets both needs
        ((), (), {"a": 0}, None),
        (("unanswerable",), (), {}, None),
        ((), (), {}, None),
    ],
)
def test_a_perfect_retriever_finds_one_gold_passage_for_each_need(tags, needs, gold, found):
    collection = small([Query("q", "?", tags=tags, needs=needs)], {"q": gold}, dict.fromkeys("abc", "text"))
    run = oracle_run(collection, questions_of(collection))
    assert run == {} if found is None else list(run["q"]) == found


def test_a_question_with_a_need_that_no_relevant_passage_meets_is_left_out_and_stops_no_other():
    query, other = Query("q", "?", needs=(("a",), ("b",))), Query("other", "?", needs=(("b", "a"),))
    qrels = {"q": {"a": 1, "b": 0}, "other": {"a": 1, "b": 0}}
    collection = small([query, other], qrels, dict.fromkeys("ab", "text"))
    assert {name: list(found) for name, found in oracle_run(collection, questions_of(collection)).items()} == {
        "other": ["a"]
    }


def test_a_question_that_two_splits_hold_comes_once_and_with_the_first():
    queries = [Query("q", "?"), Query("r", "?")]
    corpus = corpus_from_rows([(name, "", "text", "d") for name in "ab"])
    qrels = {"dev": {"q": {"a": 1}}, "train": {"r": {"a": 1}, "q": {"b": 1}}}
    collection = Collection("small", corpus, {q.id: q for q in queries}, qrels)
    asked = questions_of(collection)
    assert [(split, query.id) for split, query in each_question(asked)] == [("dev", "q"), ("train", "r")]
    assert list(oracle_run(collection, asked)["q"]) == ["a"]


NAMES = list("abcdef")


@settings(max_examples=80, deadline=None)
@given(
    gold=st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3), min_size=1),
    order=st.randoms(use_true_random=False),
    multi=st.booleans(),
)
def test_a_perfect_run_meets_every_need_with_nothing_but_gold(gold, order, multi):
    groups = []
    for _ in range(order.randint(0, 3)):
        groups.append(tuple(order.sample(sorted(gold), order.randint(1, len(gold)))))
    query = Query("q", "?", tags=("multi",) if multi else (), needs=tuple(groups))
    collection = small([query], {"q": gold}, dict.fromkeys(NAMES, "text"))
    [found] = oracle_run(collection, questions_of(collection)).values()
    needed = groups or ([(name,) for name in gold] if multi else [tuple(gold)])
    assert set(found) <= set(gold)
    assert all(set(group) & set(found) for group in needed)
    assert len(found) <= len(needed)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_each_question_is_answered_from_what_was_retrieved_from_its_gold_and_from_nothing(toy, generator):
    trial = audited(toy, RUN, generator)
    shown = {name: {a.query_id: a.context_ids for a in found.values()} for name, found in trial.answers.items()}
    assert shown == {
        "retrieved": {"q1": ("p3",), "q2": ("p4",), "q3": ("p1",)},
        "oracle": {"q1": ("p1",), "q2": ("p2", "p3")},  # both, though the system shows one passage
        "none": {"q1": (), "q2": ()},
    }
    assert (trial.questions, trial.run, trial.contexts) == (questions_of(toy), RUN, 1)


def test_the_answers_are_those_of_the_same_generator_with_other_contexts(toy, generator):
    trial = audited(toy, RUN, generator)
    two = Generator(**{**vars(generator), "contexts": 2, "max_context_tokens": 500})
    shown = answer_run(toy, [toy.queries["q2"]], {"q2": {"p2": 2.0, "p3": 1.0}}, two)
    assert trial.answers["oracle"]["q2"] == shown[0]
    alone = Generator(**{**vars(generator), "contexts": 0, "instruction": CLOSED_BOOK})
    assert trial.answers["none"]["q2"] == answer_run(toy, [toy.queries["q2"]], {}, alone)[0]


def test_without_passages_the_generator_is_not_told_to_use_them(toy, generator):
    trial = audited(toy, RUN, generator)
    told = Generator(**{**vars(generator), "contexts": 0})
    [ours] = answer_run(toy, [toy.queries["q1"]], {}, told)
    assert trial.answers["none"]["q1"].prompt_tokens < ours.prompt_tokens
    assert "passage" not in CLOSED_BOOK.lower()


def test_gold_passages_are_shown_whole_although_the_system_would_cut_them(tiny_generator):
    collection = small([Query("q", "bab dek?")], {"q": {"long": 1}}, {"long": "gip bop " * 150})
    cutting = Generator(model=str(tiny_generator), max_context_tokens=50, max_new_tokens=4, dtype="float32")
    trial = audited(collection, {"q": {"long": 1.0}}, cutting)
    assert trial.answers["retrieved"]["q"].cut_ids == ("long",)
    assert trial.answers["oracle"]["q"].cut_ids == ()


def test_gold_passages_longer_than_the_model_reads_are_cut_and_answered(tiny_generator):
    collection = small([Query("q", "bab dek?")], {"q": {"long": 1}}, {"long": "gip bop " * 2000})
    generator = Generator(model=str(tiny_generator), max_context_tokens=50, max_new_tokens=4, dtype="float32")
    trial = audited(collection, {"q": {"long": 1.0}}, generator)
    answer = trial.answers["oracle"]["q"]
    assert (answer.context_ids, answer.cut_ids, answer.completion_tokens) == (("long",), ("long",), 4)
    assert 600 < answer.prompt_tokens <= 1020


def test_a_long_question_whose_answer_could_be_had_does_not_end_the_audit(tiny_generator):
    """A pasted log, say: what the passages may take depends on how long the question is."""
    collection = small([Query("q", "bab dek " * 200)], {"q": {"long": 1}}, {"long": "gip bop " * 2000})
    generator = Generator(model=str(tiny_generator), max_context_tokens=50, max_new_tokens=4, dtype="float32")
    trial = audited(collection, {"q": {"long": 1.0}}, generator)
    assert trial.answers["retrieved"]["q"].context_ids == ("long",)
    assert trial.answers["oracle"]["q"].context_ids == ("long",)


def test_the_oracle_never_shows_less_than_the_system_does(toy, generator):
    generous = Generator(**{**vars(generator), "max_context_tokens": 900})  # more than room_for_context allows
    trial = audited(toy, RUN, generous)
    assert all(answer.cut_ids == () for answer in trial.answers["oracle"].values())


def test_questions_without_gold_are_not_asked_again(toy, generator):
    unanswerable = {"test": [toy.queries["q3"]]}
    trial = audited(toy, RUN, generator, unanswerable)
    assert {condition: set(found) for condition, found in trial.answers.items()} == {
        "retrieved": {"q3"}, "oracle": set(), "none": set(),
    }  # fmt: skip


def test_only_what_was_answered_is_answered_again(toy, generator):
    answers = {a.query_id: a for a in answer_run(toy, [toy.queries["q2"]], RUN, generator)}
    trial = answer_counterfactually(toy, questions_of(toy), RUN, answers, generator)
    assert {condition: set(found) for condition, found in trial.answers.items()} == {
        "retrieved": {"q2"}, "oracle": {"q2"}, "none": {"q2"},
    }  # fmt: skip
    assert trial.questions == questions_of(toy)  # all, for the signs of the retriever


def test_a_failed_answer_stays_failed_and_its_question_is_asked_again(toy, generator):
    failed = Answer("q1", "", ("p1",), (), 0, 0, 0.0, "error")
    trial = answer_counterfactually(toy, questions_of(toy), RUN, {"q1": failed}, generator)
    assert trial.answers["retrieved"] == {"q1": failed}
    assert trial.answers["oracle"]["q1"].context_ids == ("p1",)


def test_without_a_generator_there_are_no_answers_and_no_model_is_needed(toy):
    trial = audited(toy, RUN, Generator(backend="none", model="no/such/model"))
    assert trial.answers == {"retrieved": {}, "oracle": {}, "none": {}}
    assert (trial.questions, trial.run) == (questions_of(toy), RUN)


def test_no_questions_give_a_trial_without_answers(toy, generator):
    trial = audited(toy, {}, generator, {})
    assert trial.answers == {"retrieved": {}, "oracle": {}, "none": {}}


@pytest.fixture
def narrow_server(chat_server) -> tuple[str, list[dict]]:
    """Serve a model that reads at most 600 characters and refuses more, as vLLM does; give URL and requests."""
    return chat_server(lambda messages: "Yes." if sum(len(one["content"]) for one in messages) <= 600 else None)


def test_a_served_generator_is_asked_under_all_conditions(toy, narrow_server):
    url, requests = narrow_server
    generator = Generator("endpoint", "m", endpoint=url, contexts=1, max_context_tokens=60, instruction="Be brief.")
    trial = audited(toy, RUN, generator)
    seen = [request["messages"][-1]["content"] for request in requests]
    assert "What do cats do all day?" in seen  # without passages
    assert any("[p2]" in text and "[p3]" in text for text in seen)
    assert {answer.answer for found in trial.answers.values() for answer in found.values()} == {"Yes."}


def test_a_served_model_that_reads_less_than_assumed_does_not_end_the_audit(narrow_server):
    """Nothing tells how much it reads; the system's own limit is known to work."""
    url, _ = narrow_server
    collection = small([Query("q", "Why?")], {"q": {"long": 1}}, {"long": "word " * 400})
    generator = Generator("endpoint", "m", endpoint=url, max_context_tokens=100, instruction="Be brief.")
    trial = audited(collection, {"q": {"long": 1.0}}, generator)
    assert trial.answers["retrieved"]["q"].answer == "Yes."
    assert trial.answers["none"]["q"].answer == "Yes."
    assert "q" in trial.answers["oracle"]


def test_the_order_of_the_prompt_is_kept_in_every_condition(toy, narrow_server):
    url, requests = narrow_server
    last = Generator(
        "endpoint", "m", endpoint=url, contexts=1, max_context_tokens=60, instruction="Be brief.",
        order="instruction_last",
    )  # fmt: skip
    audited(toy, RUN, last)
    ends = {request["messages"][-1]["content"].rsplit("\n\n", 1)[1] for request in requests}
    assert ends == {"Be brief.", CLOSED_BOOK}
