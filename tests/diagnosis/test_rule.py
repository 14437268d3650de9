import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.diagnosis.fixes import Fixes, Setting
from ragbench.diagnosis.rule import (
    GENERATOR_REALISED,
    RETRIEVER_REALISED,
    Criteria,
    Projection,
    Shares,
    choose,
    extra,
    known_gain,
    project,
    shares_of,
)
from ragbench.evaluation.evaluate import System
from ragbench.generation.generate import Generator
from ragbench.retrieval.retrieve import Retriever

BM25 = Setting("bm25", {"retriever_method": "bm25"}, System("base", Retriever(method="bm25"), Generator()), True)
TRAINING = {"retriever", "generator", "end_to_end"}
DOMAINS = list(RETRIEVER_REALISED)
HELPED, LOST, BLIND, NEITHER = (1, 1, 0, "shown"), (0, 1, 0, "not found"), (0, 0, 0, "shown"), (0, 0, 0, "not found")
"""(right as retrieved, right with the gold passages, right without any, stage)"""


def evidence_of(*rows):
    """One row a question: right or wrong under the three conditions, and how far its passages came."""
    names = ["correctness_retrieved", "correctness_oracle", "correctness_none", "stage"]
    table = pd.DataFrame(rows, columns=names).astype(dict.fromkeys(names[:3], float))
    return table.assign(split="dev", query_id=[f"q{number}" for number in range(len(table))], asked=True, answered=True)


def projected(*rows, gain=0.0, domain="medium"):
    return project(shares_of(evidence_of(*rows), 0.5), gain, domain)


questions = st.lists(
    st.tuples(*[st.integers(0, 1)] * 3, st.sampled_from(["not found", "not shown", "cut off", "shown"])),
    min_size=1,
    max_size=40,
)
portion = st.floats(0, 1)
unhurried = settings(deadline=None, max_examples=60)
criteria = st.builds(
    Criteria,
    accuracy=portion,
    domain=st.sampled_from(DOMAINS),
    queries_per_month=st.integers(0, 10**6),
    worth=st.floats(0, 1),
    cost=st.sampled_from([0.0, 1.0, 500.0, 1e6, float("nan")]),
)
counts = st.lists(st.integers(0, 30), min_size=5, max_size=5).filter(any)
projections = st.builds(
    lambda parts, gain, domain: project(Shares(*(part / sum(parts) for part in parts)), gain, domain),
    counts,
    st.floats(-0.3, 0.5),
    st.sampled_from(DOMAINS),
)


# Where the questions stand


@given(questions, portion)
@unhurried
def test_every_question_stands_in_one_place(rows, right_from):
    found = shares_of(evidence_of(*rows), right_from)
    assert all(0 <= share <= 1 for share in vars(found).values())
    assert sum(vars(found).values()) == pytest.approx(1)


@pytest.mark.parametrize("stage", ["not found", "not shown", "cut off", "shown"])
def test_the_stage_says_whether_a_better_generator_would_repair_it(stage):
    whole = stage == "shown"
    assert shares_of(evidence_of((0, 0, 1, stage)), 0.5) == Shares(0, 0, float(whole), 0, float(not whole))
    assert shares_of(evidence_of((0, 1, 1, stage)), 0.5) == Shares(0, float(not whole), 0, float(whole), 0)
    assert shares_of(evidence_of((1, 0, 0, stage)), 0.5) == Shares(1, 0, 0, 0, 0)


def test_an_answer_is_right_from_the_threshold_on():
    rows = evidence_of((0.6, 0.6, 0.6, "not found"), (0.59, 0.6, 0.6, "not found"))
    assert shares_of(rows, 0.6) == Shares(0.5, 0.5, 0, 0, 0)


# The projection


@given(questions, st.floats(-0.5, 0.8), st.sampled_from(list(RETRIEVER_REALISED)))
@unhurried
def test_a_projection_is_a_share_and_tuning_never_makes_it_worse(rows, gain, domain):
    p = projected(*rows, gain=gain, domain=domain)
    assert p.now == np.mean([row[0] for row in rows])
    for value in (p.settings, p.retriever, p.generator):
        assert p.now <= value <= 1
    assert max(p.retriever, p.generator) - 1e-9 <= p.end_to_end <= 1


@given(questions, st.sampled_from(list(RETRIEVER_REALISED)))
@unhurried
def test_a_wrong_answer_that_either_part_could_repair_is_repaired_once(rows, domain):
    """Tuning both repairs a wrong answer unless both tunings miss it, so no more than 1 − (1 − r)(1 − g) of them."""
    p = projected(*rows, domain=domain)
    at_most = 1 - (1 - RETRIEVER_REALISED[domain]) * (1 - GENERATOR_REALISED)
    assert p.end_to_end - p.now <= at_most * (1 - p.now) + 1e-9


def test_the_stated_shares_of_the_headroom_are_realised():
    p = projected(*[HELPED] * 5, *[LOST] * 3, *[BLIND] * 2)
    assert p.retriever == pytest.approx(0.5 + RETRIEVER_REALISED["medium"] * 0.3)
    assert p.generator == pytest.approx(0.5 + GENERATOR_REALISED * 0.2)
    assert p.end_to_end == pytest.approx(0.5 + RETRIEVER_REALISED["medium"] * 0.3 + GENERATOR_REALISED * 0.2)


def test_what_needs_both_parts_counts_only_where_both_are_tuned():
    p = projected(*[HELPED] * 5, *[NEITHER] * 5)
    assert (p.retriever, p.generator) == (0.5, 0.5)
    assert p.end_to_end == pytest.approx(0.5 + 0.5 * RETRIEVER_REALISED["medium"] * GENERATOR_REALISED)


def test_the_farther_the_vocabulary_from_general_text_the_more_the_retriever_gains():
    rows = [HELPED] * 5 + [LOST] * 5
    reached = [projected(*rows, domain=domain).retriever for domain in ("low", "medium", "high")]
    assert reached == sorted(reached) and len(set(reached)) == 3


def test_a_setting_that_made_it_worse_is_not_projected_as_a_loss():
    assert projected(HELPED, LOST, gain=-0.2).settings == 0.5


# The rule


@given(projections, criteria)
@unhurried
def test_nothing_is_done_where_it_is_accurate_enough(projection, wanted):
    if projection.now >= wanted.accuracy:
        assert choose(projection, wanted) == "none"


@given(projections, criteria, portion)
@unhurried
def test_needing_more_accuracy_never_turns_training_into_less(projection, wanted, other):
    steps = {"none": 0, "settings": 1}
    low, high = sorted([wanted.accuracy, other])
    found = [choose(projection, Criteria(**{**vars(wanted), "accuracy": accuracy})) for accuracy in (low, high)]
    assert steps.get(found[0], 2) <= steps.get(found[1], 2)


@given(projections, criteria, st.integers(1, 100))
@unhurried
def test_more_queries_never_turn_training_into_less_and_more_cost_never_into_training(projection, wanted, times):
    trained = choose(projection, wanted) in TRAINING
    more = Criteria(**{**vars(wanted), "queries_per_month": wanted.queries_per_month * times})
    dearer = Criteria(**{**vars(wanted), "cost": wanted.cost * times})
    assert choose(projection, more) in TRAINING or not trained
    assert choose(projection, dearer) not in TRAINING or trained


@given(projections, criteria)
@unhurried
def test_only_what_is_projected_to_gain_is_trained(projection, wanted):
    choice = choose(projection, wanted)
    if choice in TRAINING:
        assert getattr(projection, choice) > max(projection.now, projection.settings)
    if choice == "settings":
        assert projection.settings > projection.now


@given(projections, criteria)
@unhurried
def test_both_are_tuned_only_where_neither_alone_is_projected_to_be_enough(projection, wanted):
    if choose(projection, wanted) == "end_to_end":
        assert max(projection.retriever, projection.generator) < wanted.accuracy


@pytest.mark.parametrize(
    ("projection", "choice"),
    [
        (Projection(0.85, 0.90, 0.90, 0.90, 0.95), "none"),
        (Projection(0.60, 0.82, 0.75, 0.62, 0.77), "settings"),
        (Projection(0.60, 0.70, 0.65, 0.62, 0.67), "settings"),
        (Projection(0.60, 0.62, 0.81, 0.65, 0.86), "retriever"),
        (Projection(0.60, 0.60, 0.62, 0.75, 0.77), "generator"),
        (Projection(0.40, 0.40, 0.55, 0.55, 0.70), "end_to_end"),
        (Projection(0.40, 0.40, 0.40, 0.40, 0.40), "none"),
    ],
)
def test_the_rule_by_example(projection, choice):
    assert choose(projection, Criteria(accuracy=0.8)) == choice


def test_a_year_of_extra_right_answers_must_be_worth_what_tuning_costs():
    p = Projection(0.6, 0.6, 0.7, 0.6, 0.7)
    worth = 12 * 1000 * 0.1 * 0.05  # a year's extra right answers, 60 in all
    assert choose(p, Criteria(queries_per_month=1000, worth=0.05, cost=worth - 1)) == "retriever"
    assert choose(p, Criteria(queries_per_month=1000, worth=0.05, cost=worth + 1)) == "none"
    cheap = Projection(0.6, 0.65, 0.7, 0.6, 0.7)
    assert choose(cheap, Criteria(queries_per_month=1000, worth=0.05, cost=worth - 1)) == "settings"


def test_the_second_part_is_tuned_too_only_if_it_adds_enough_to_matter():
    assert choose(Projection(0.4, 0.4, 0.55, 0.45, 0.59), Criteria()) == "retriever"
    assert choose(Projection(0.4, 0.4, 0.55, 0.45, 0.61), Criteria()) == "end_to_end"


def test_a_cost_that_is_not_known_does_not_decide():
    p = Projection(0.6, 0.6, 0.7, 0.6, 0.7)
    assert choose(p, Criteria(cost=float("nan"))) == choose(p, Criteria(cost=0.0)) == "retriever"


def test_where_nobody_asks_nothing_is_trained():
    assert choose(Projection(0.6, 0.6, 0.7, 0.6, 0.7), Criteria(queries_per_month=0)) == "none"


@given(projections, criteria, st.sampled_from(sorted(TRAINING)))
@unhurried
def test_the_right_answers_of_a_year_are_those_beyond_what_is_free(projection, wanted, part):
    answers, worth = extra(projection, part, wanted)
    gained = getattr(projection, part) - max(projection.now, projection.settings)
    assert answers == pytest.approx(12 * wanted.queries_per_month * max(0.0, gained))
    assert worth == pytest.approx(answers * wanted.worth)


# The gain of a setting


def test_the_gain_of_the_best_setting_is_the_measured_one():
    assert known_gain(Fixes(pd.DataFrame(), BM25, 0.1, 0.05, 0.15, 50, 50)) == 0.1
    assert known_gain(Fixes(pd.DataFrame(), BM25, -0.1, -0.2, 0.05, 50, 50)) == -0.1


@pytest.mark.parametrize(
    "fixes",
    [
        Fixes(pd.DataFrame(), None),
        Fixes(pd.DataFrame(), BM25),
        Fixes(pd.DataFrame(), BM25, 1.0, float("nan"), float("nan"), 1, 1),
    ],
)
def test_a_gain_without_an_interval_is_not_counted_on(fixes):
    assert known_gain(fixes) == 0.0
