from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.diagnosis.attribution import CELLS, HEADROOM
from ragbench.diagnosis.audit import Diagnosis, attribution_table, diagnose, sign_examples, split_table, thresholds_from
from ragbench.diagnosis.counterfactual import Trial
from ragbench.diagnosis.evidence import STAGES
from ragbench.diagnosis.measures import COLUMNS, Measured
from ragbench.diagnosis.sign import Thresholds
from ragbench.errors import RagbenchError
from ragbench.evaluation.evaluate import Outcome
from ragbench.evaluation.scores import COLUMNS as SCORES
from ragbench.generation.answers import Answer
from ragbench.retrieval.encoder import open_encoder

N = 20
GOLD = {f"q{n}": {f"p{n}": 1} for n in range(N)}
MISSED = [f"q{n}" for n in range(12)]
"""The retriever finds another passage for these; the generator is right wherever it has what it needs."""
UNANSWERABLE = Query("q99", "What does nobody know at all?", "The documents do not say.", tags=("unanswerable",))


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


def collection():
    corpus = corpus_from_rows((f"p{n}", "", f"bab bed {'big ' * (n % 3)}bod.", "d") for n in range(N + 1))
    queries = {name: Query(name, f"What of the thing {name}?", "The reference.") for name in GOLD}
    return Collection("hand-made", corpus, queries | {"q99": UNANSWERABLE}, {"dev": GOLD | {"q99": {}}})


WHOLE = collection()
QUESTIONS = {"dev": list(WHOLE.queries.values())}
RUN = {name: {f"p{N}" if name in MISSED else f"p{name[1:]}": 1.0} for name in GOLD} | {"q99": {f"p{N}": 1.0}}


def answer(query_id, condition):
    shown = {"retrieved": tuple(RUN[query_id]), "oracle": tuple(GOLD.get(query_id, ())), "none": ()}[condition]
    return Answer(query_id, f"{query_id} {condition}", shown, (), 10, 5, 0.1, "stop")


TRIAL = Trial(
    QUESTIONS,
    RUN,
    1,
    {
        "retrieved": {name: answer(name, "retrieved") for name in WHOLE.queries},
        "oracle": {name: answer(name, "oracle") for name in GOLD},
        "none": {name: answer(name, "none") for name in GOLD},
    },
)
OUTCOME = Outcome("base", QUESTIONS, RUN, TRIAL.answers["retrieved"], pd.DataFrame(columns=SCORES))


def measures():
    rows = [("retrieved", "q99", "refused", 1.0), ("retrieved", "q99", "format", 1.0)]
    for name in GOLD:
        right = {"retrieved": float(name not in MISSED), "oracle": 1.0, "none": 0.0}
        for condition, value in right.items():
            rows += [(condition, name, "correctness", value), (condition, name, "refused", 0.0)]
            rows += [(condition, name, measure, 1.0) for measure in ("grounding", "relevance", "format")]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture(scope="module")
def found(encoder):
    return diagnose(WHOLE, TRIAL, measures(), encoder)


@pytest.fixture(scope="module")
def unanswered(encoder):
    return diagnose(WHOLE, replace(TRIAL, answers={}), pd.DataFrame(columns=COLUMNS), encoder)


# The diagnosis


def test_a_retriever_that_misses_is_named_and_nothing_else(found):
    assert [sign.name for sign in found.faults] == ["missed"]
    assert set(found.faults[0].query_ids) == set(MISSED) and found.faults[0].rate == 12 / 20
    assert found.attribution.cell("retriever").value == 12 / 20 and found.attribution.scored == N
    assert found.attribution.reachable("retriever").value == 1


def test_every_question_has_a_row_and_every_sign_is_measured(found):
    assert found.evidence["query_id"].tolist() == list(WHOLE.queries)
    assert len({sign.name for sign in found.signs}) == len(found.signs) == 12
    assert {effect: cause for effect, cause in found.consequences.items() if effect == "missed"} == {}


def test_the_share_of_special_words_is_the_passages(found, encoder):
    assert found.special == 0  # only words that the encoder has a unit for
    rare = corpus_from_rows((f"p{n}", "", "bab zebra", "d") for n in range(N + 1))
    other = diagnose(replace(WHOLE, corpus=rare), TRIAL, measures(), encoder)
    assert other.special == pytest.approx(0.5)


def test_thresholds_decide_what_is_present_and_what_is_right(encoder):
    lenient = diagnose(WHOLE, TRIAL, measures(), encoder, Thresholds(missed=0.9))
    assert lenient.faults == ()
    table = measures()
    table.loc[table["condition"] == "oracle", "value"] *= 0.6
    strict = diagnose(WHOLE, TRIAL, table, encoder, Thresholds(right=0.7))
    assert strict.attribution.cell("retriever").value == 0


def test_without_answers_the_retrieval_is_still_diagnosed(unanswered):
    assert unanswered.attribution is None and [sign.name for sign in unanswered.faults] == ["missed"]
    assert all(sign.state == "unknown" for sign in unanswered.signs if sign.component == "generator")


def test_the_same_trial_gives_the_same_diagnosis(found, encoder):
    again = diagnose(WHOLE, TRIAL, measures(), encoder)
    pd.testing.assert_frame_equal(again.evidence, found.evidence)
    assert (again.attribution, again.faults) == (found.attribution, found.faults)


# Thresholds


MEASURED = Measured(pd.DataFrame(), 0.3, 0.7, pd.DataFrame(), "")


def test_what_counts_as_supported_and_relevant_is_as_measured_if_not_named():
    assert thresholds_from({}, MEASURED) == Thresholds(grounded=0.3, relevant=0.7)
    assert thresholds_from({"grounded": 0.9, "missed": 0.1}, MEASURED) == Thresholds(
        grounded=0.9, relevant=0.7, missed=0.1
    )


def test_the_fewest_questions_are_a_number_of_questions():
    found = thresholds_from({"fewest": 5.0}, MEASURED).fewest
    assert found == 5 and isinstance(found, int)
    with pytest.raises(RagbenchError, match=r"'fewest'.*at least 1.*0"):
        thresholds_from({"fewest": 0}, MEASURED)


@pytest.mark.parametrize(
    ("name", "near"), [("mised", "missed"), ("hallucinations", "hallucination"), ("over_refusals", "over_refusal")]
)
def test_an_unknown_threshold_is_an_error_with_the_nearest_name(name, near):
    with pytest.raises(RagbenchError, match=rf"audit_thresholds.*'{name}'.*'{near}'"):
        thresholds_from({name: 0.5}, MEASURED)


def test_a_name_like_no_other_is_an_error_that_lists_the_names():
    with pytest.raises(RagbenchError, match=r"'xyzzy'.*answers_anyway.*wrong_despite_retrieval"):
        thresholds_from({"xyzzy": 0.5}, MEASURED)


@given(st.floats().filter(lambda value: not 0 <= value <= 1))
def test_a_threshold_that_is_no_share_is_an_error(value):
    with pytest.raises(RagbenchError, match=r"'missed' must lie between 0 and 1"):
        thresholds_from({"missed": value}, MEASURED)


# Tables


def test_the_split_leaves_out_what_there_is_nothing_of(found):
    table = split_table(found)
    assert list(table["name"]) == [name for name in CELLS if name in ("helped", "retriever")]
    assert table["value"].sum() == pytest.approx(1) and table["questions"].sum() == N
    assert {"name", "text", "value", "low", "high"} <= set(table.columns)


def test_the_attribution_is_told_part_by_part(found):
    table = attribution_table(found)
    assert list(table.columns) == ["part", "what", "share", "low", "high", "questions"]
    counts = {"reachable": len(HEADROOM), "gain": len(HEADROOM) - 1, "lost": len(STAGES)}
    assert table["part"].value_counts().to_dict() == counts
    lost = table[(table["part"] == "lost") & (table["questions"] > 0)]
    assert lost["questions"].tolist() == [12] and lost["share"].tolist() == [0.6]
    gain = table[(table["part"] == "gain") & table["what"].str.contains("perfect retriever")]
    assert gain["share"].tolist() == [0.6] and gain["low"].item() < 0.6 < gain["high"].item()


def test_without_answers_the_tables_are_empty_with_their_columns(found, unanswered):
    for table in (split_table, attribution_table):
        assert table(unanswered).empty and list(table(unanswered).columns) == list(table(found).columns)


# Examples


def names(cases):
    return [case.query.id for case in cases]


def test_every_sign_has_up_to_so_many_questions_that_show_it(found):
    examples = sign_examples(WHOLE, OUTCOME, TRIAL, found)
    assert set(examples) == {sign.name for sign in found.signs}
    assert names(examples["missed"]) == MISSED[:3] and examples["hallucination"] == []
    assert names(sign_examples(WHOLE, OUTCOME, TRIAL, found, limit=5)["missed"]) == MISSED[:5]


def given_sign(found, name, *query_ids) -> Diagnosis:
    signs = tuple(replace(sign, query_ids=query_ids) if sign.name == name else sign for sign in found.signs)
    return replace(found, signs=signs)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missed", "q0 retrieved"),
        ("format", "q0 retrieved"),
        ("answers_anyway", "q0 retrieved"),
        ("hallucination", "q0 oracle"),
        ("off_topic", "q0 oracle"),
        ("over_refusal", "q0 oracle"),
    ],
)
def test_an_example_shows_the_answer_that_its_sign_looked_at(found, name, expected):
    [case] = sign_examples(WHOLE, OUTCOME, TRIAL, given_sign(found, name, "q0"))[name]
    assert case.answer.answer == expected and case.shown[0][0].id == ("p0" if "oracle" in expected else "p20")


def test_where_everything_needed_was_retrieved_the_generator_is_shown_with_that(found):
    [case] = sign_examples(WHOLE, OUTCOME, TRIAL, given_sign(found, "hallucination", "q15"))["hallucination"]
    assert case.answer.answer == "q15 retrieved"


def test_questions_that_were_not_answered_are_no_examples(found):
    part = replace(OUTCOME, answers={name: a for name, a in OUTCOME.answers.items() if name != "q0"})
    assert names(sign_examples(WHOLE, part, TRIAL, found)["missed"]) == MISSED[1:4]
    nothing = sign_examples(WHOLE, replace(OUTCOME, answers={}), replace(TRIAL, answers={}), found)
    assert not any(nothing.values())


def test_a_sign_without_questions_has_no_rate(unanswered):
    silent = [sign for sign in unanswered.signs if sign.n == 0]
    assert silent and all(np.isnan([sign.rate, sign.low, sign.high]).all() for sign in silent)
