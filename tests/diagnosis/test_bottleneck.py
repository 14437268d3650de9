from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragbench.diagnosis.bottleneck import EXPLAINS, explained, faults
from ragbench.diagnosis.evidence import HOUSE
from ragbench.diagnosis.sign import Sign
from ragbench.diagnosis.signs import all_signs

NAMES = (
    "wrong_despite_retrieval",
    "domain_terms",
    "hallucination",
    "format",
    "off_topic",
    "synthesis",
    "missed",
    "cut_off",
    "over_refusal",
    "answers_anyway",
    "ignores_passages",
    "blind_topic",
)


def sign(name, state="present", rate=0.8, threshold=0.2):
    return Sign(name, "generator", name, name, rate, rate - 0.1, rate + 0.1, 50, threshold, state=state)


def named(*names):
    return {fault.name for fault in faults([sign(name) for name in names])}


def evidence(n, **columns):
    numbers = range(n)
    fixed = {"correctness": 0.9, "grounding": 0.9, "relevance": 1.0, "refused": 0.0}
    table = {
        "query_id": [f"q{number}" for number in numbers],
        "answerable": True,
        "needs": 1,
        "stage": pd.Series("shown", numbers, dtype=object),
        "words": 8,
        "special": np.linspace(0, 0.4, n),
        "gap": 0.2,
        "answered": True,
        "cited_given": 1.0,
        "unchanged_given": 0.1,
        "form": HOUSE,
        "usual_form": HOUSE,
    } | {f"{name}_{when}": value for name, value in fixed.items() for when in ("given", "retrieved")}
    return pd.DataFrame(table | columns, index=numbers)


def found(table, topics=None):
    if topics is None:
        topics = pd.DataFrame({15: "all"}, index=table.index, dtype=object)
    return {fault.name for fault in faults(all_signs(table, topics))}


def test_the_signs_spoken_of_are_those_that_are_measured():
    table = evidence(12)
    measured = {sign.name for sign in all_signs(table, pd.DataFrame({15: "all"}, index=table.index))}
    assert set(NAMES) == measured
    assert {*EXPLAINS, *(effect for effects in EXPLAINS.values() for effect in effects)} <= measured
    assert not any(cause in effects for cause, effects in EXPLAINS.items())


def test_only_present_signs_are_faults():
    signs = [sign("missed", "possible"), sign("format", "absent"), sign("synthesis", "unknown")]
    assert faults(signs) == () and faults([]) == () and explained([]) == {}
    assert [fault.name for fault in faults([*signs, sign("cut_off")])] == ["cut_off"]


def test_a_sign_that_is_not_present_explains_nothing():
    signs = [sign("hallucination", "possible"), sign("wrong_despite_retrieval")]
    assert [fault.name for fault in faults(signs)] == ["wrong_despite_retrieval"]


@pytest.mark.parametrize("name", NAMES)
def test_a_sign_alone_is_the_fault(name):
    assert named(name) == {name}


@pytest.mark.parametrize(
    "cause", ["over_refusal", "off_topic", "ignores_passages", "hallucination", "domain_terms", "synthesis"]
)
def test_wrong_answers_are_the_consequence_of_what_makes_them_wrong(cause):
    assert named(cause, "wrong_despite_retrieval") == {cause}
    assert explained([sign("wrong_despite_retrieval"), sign(cause)])["wrong_despite_retrieval"] == cause


@pytest.mark.parametrize(
    ("cause", "effects"),
    [
        ("ignores_passages", ["wrong_despite_retrieval", "hallucination"]),
        ("off_topic", ["wrong_despite_retrieval", "hallucination", "ignores_passages"]),
        ("over_refusal", ["wrong_despite_retrieval", "format"]),
        ("blind_topic", ["missed"]),
    ],
)
def test_a_fault_takes_its_consequences_with_it(cause, effects):
    assert named(*effects, cause) == {cause}


@pytest.mark.parametrize("pair", [("missed", "hallucination"), ("cut_off", "format"), ("answers_anyway", "missed")])
def test_faults_of_different_origin_are_both_named(pair):
    assert named(*pair) == set(pair)


def mutual():
    return [pair for pair in combinations(EXPLAINS, 2) if pair[0] in EXPLAINS[pair[1]] and pair[1] in EXPLAINS[pair[0]]]


@pytest.mark.parametrize("pair", mutual())
def test_two_signs_that_explain_each_other_both_stay(pair):
    assert named(*pair) == named(*reversed(pair)) == set(pair)


def test_where_any_sign_is_present_at_least_one_fault_is_named():
    nothing = [names for size in range(1, len(NAMES) + 1) for names in combinations(NAMES, size) if not named(*names)]
    assert nothing == []


def test_a_sign_is_dropped_only_for_one_that_explains_it_and_that_it_does_not_explain():
    for size in (2, 3, 4):
        for names in combinations(NAMES, size):
            stays = {
                name
                for name in names
                if all(cause in EXPLAINS.get(name, ()) for cause in names if name in EXPLAINS.get(cause, ()))
            }
            assert named(*names) == stays, names


def test_the_order_of_the_signs_does_not_matter():
    for size in (2, 3):
        for names in combinations(NAMES, size):
            assert len({frozenset(named(*order)) for order in permutations(names)}) == 1, names


@given(st.lists(st.sampled_from(NAMES), unique=True))
def test_every_consequence_is_told_with_a_cause_and_the_causes_end_at_a_fault(names):
    causes = explained([sign(name) for name in names])
    kept = named(*names)
    assert set(names) == kept | set(causes)
    for name in set(names) - kept:
        seen = []
        while name not in kept:
            assert name not in seen
            seen.append(name)
            assert name in EXPLAINS[causes[name]] and causes[name] in names
            name = causes[name]


def test_the_worst_fault_comes_first():
    signs = [
        sign("cut_off", rate=0.30, threshold=0.05),  # a quarter of the way to 1
        sign("hallucination", rate=0.6, threshold=0.2),  # half
        sign("format", rate=0.8, threshold=0.7),  # a third
    ]
    for order in permutations(signs):
        assert [fault.name for fault in faults(order)] == ["hallucination", "format", "cut_off"]


def test_passages_cut_off_do_not_hide_those_that_were_never_retrieved():
    # "Missed" does not count what was cut off, so the one cannot be the consequence of the other.
    table = evidence(100, stage=["not found"] * 60 + ["cut off"] * 20 + ["shown"] * 20)
    assert found(table) >= {"missed", "cut_off"}


def test_a_blind_topic_does_not_hide_that_all_others_are_missed_as_well():
    stage = ["not found"] * 40 + ["not found"] * 40 + ["shown"] * 40
    topics = pd.DataFrame({15: ["blind"] * 40 + ["other"] * 80}, index=range(120), dtype=object)
    assert found(evidence(120, stage=stage), topics) == {"missed", "blind_topic"}


def test_a_blind_topic_explains_what_is_missed_if_little_else_is():
    stage = ["not found"] * 50 + ["shown"] * 70
    topics = pd.DataFrame({15: ["blind"] * 50 + ["other"] * 70}, index=range(120), dtype=object)
    assert found(evidence(120, stage=stage), topics) == {"blind_topic"}


@pytest.mark.parametrize("name", ["domain_terms", "synthesis"])
def test_refusals_do_not_hide_a_fault_that_is_measured_on_the_other_questions_alone(name):
    n = 120
    refused = np.arange(n) % 3 == 0
    hard = np.arange(n) >= n / 2
    needs = np.where(hard, 2, 1) if name == "synthesis" else 1
    table = evidence(n, needs=needs, refused_given=refused.astype(float), correctness_given=np.where(refused, 0.0, 0.9))
    table.loc[~refused & hard, "correctness_given"] = 0.1
    assert found(table) == {"over_refusal", name}
