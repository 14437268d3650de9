import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragbench.diagnosis.decision import SURE, decide
from ragbench.diagnosis.fixes import Fixes, Setting
from ragbench.diagnosis.rule import FEWEST_QUESTIONS, RETRIEVER_REALISED, Criteria
from ragbench.diagnosis.sign import Sign
from ragbench.evaluation.evaluate import System
from ragbench.generation.generate import Generator
from ragbench.retrieval.retrieve import Retriever

NO_FIX = Fixes(pd.DataFrame(), None)
BM25 = Setting("bm25", {"retriever_method": "bm25"}, System("base", Retriever(method="bm25"), Generator()), True)
HELPED, LOST, BLIND, NEITHER = (1, 1, 0, "shown"), (0, 1, 0, "not found"), (0, 0, 0, "shown"), (0, 0, 0, "not found")
"""(right as retrieved, right with the gold passages, right without any, stage)"""


def evidence_of(*rows):
    """One row a question: right or wrong under the three conditions, and how far its passages came."""
    names = ["correctness_retrieved", "correctness_oracle", "correctness_none", "stage"]
    table = pd.DataFrame(rows, columns=names).astype(dict.fromkeys(names[:3], float))
    return table.assign(split="dev", query_id=[f"q{number}" for number in range(len(table))], asked=True, answered=True)


def without_answers(*stages):
    nothing = [(np.nan, np.nan, np.nan, stage) for stage in stages]
    return evidence_of(*nothing).assign(asked=False, answered=False)


def tried(gain, low, high, n=50, best=BM25):
    return Fixes(pd.DataFrame(), best, gain, low, high, n, 50)


def sign(name, component, rate=0.6):
    return Sign(name, component, f"The sign {name}", "A share.", rate, rate - 0.1, rate + 0.1, 50, 0.3, state="present")


def sentences(decision):
    return [decision.headline, *decision.reasons, *decision.would_change]


def one_of(decision, *patterns):
    """The first sentence that matches all patterns, or None."""
    return next((s for s in sentences(decision) if all(re.search(p, s, re.IGNORECASE) for p in patterns)), None)


questions = st.lists(
    st.tuples(*[st.integers(0, 1)] * 3, st.sampled_from(["not found", "not shown", "cut off", "shown"])),
    min_size=1,
    max_size=40,
)
criteria = st.builds(
    Criteria,
    accuracy=st.floats(0, 1),
    domain=st.sampled_from(list(RETRIEVER_REALISED)),
    queries_per_month=st.integers(0, 10**6),
    worth=st.floats(0, 1),
    cost=st.sampled_from([0.0, 1.0, 500.0, 1e6, float("nan")]),
)


# The decision and how sure it is


def test_it_says_which_part_to_train_and_why():
    rows = evidence_of(*[HELPED] * 60, *[LOST] * 30, *[BLIND] * 2)
    decision = decide(rows, [sign("missed", "retriever")], NO_FIX, Criteria())
    assert decision.choice == "retriever" and "retriever" in decision.headline
    assert decision.firm and decision.confidence >= 0.8 and decision.needed is None and decision.questions == 92
    assert one_of(decision, r"^65\.2% of the answers are right; 80\.0% are needed")
    assert one_of(decision, "The sign missed", "60%", "50%", "70%")
    rows = evidence_of(*[HELPED] * 60, *[BLIND] * 30, *[LOST] * 2)
    assert decide(rows, [], NO_FIX, Criteria()).choice == "generator"


FIFTEEN = {
    "mixed": [HELPED] * 6 + [LOST] * 6 + [BLIND] * 3,
    "retriever and generator alike": [HELPED] * 7 + [LOST] * 5 + [BLIND] * 3,
    "all right": [HELPED] * 15,
    "all wrong": [BLIND] * 15,
    "nothing repairs it": [NEITHER] * 15,
}


@pytest.mark.parametrize("kind", FIFTEEN)
def test_fifteen_questions_are_said_to_be_too_few_with_the_number_that_would_do(kind):
    decision = decide(evidence_of(*FIFTEEN[kind]), (), NO_FIX, Criteria())
    assert decision.questions == 15 and not decision.firm and decision.needed >= FEWEST_QUESTIONS
    assert one_of(decision, "15 questions are too few", rf"\b{decision.needed}\b"), sentences(decision)


def test_of_a_tie_no_number_of_questions_is_said_to_do():
    """Right at the accuracy needed, more questions that come out like these leave it as open as it is."""
    decision = decide(evidence_of(*[HELPED] * 12, *[LOST] * 3), (), NO_FIX, Criteria(accuracy=0.8))
    assert not decision.firm and decision.needed is None
    assert one_of(decision, "15 questions are too few", "leave the choice open"), sentences(decision)


@given(questions.filter(lambda rows: len(rows) < FEWEST_QUESTIONS), criteria)
@example([HELPED] * 12 + [LOST] * 3, Criteria(accuracy=0.8))
@settings(max_examples=15, deadline=None)
def test_few_questions_are_never_firm_and_said_to_be_few(rows, wanted):
    decision = decide(evidence_of(*rows), (), NO_FIX, wanted)
    assert not decision.firm and 0 <= decision.confidence <= 1 and decision.questions == len(rows)
    assert decision.needed is None or decision.needed >= FEWEST_QUESTIONS
    assert one_of(decision, rf"\b{len(rows)} question", "too few"), sentences(decision)


def test_the_number_named_would_do_if_more_questions_came_out_like_these():
    rows = FIFTEEN["mixed"]
    needed = decide(evidence_of(*rows), (), NO_FIX, Criteria()).needed
    more = (rows * needed)[: 15 * -(-needed // 15)]
    again = decide(evidence_of(*more), (), NO_FIX, Criteria())
    assert again.firm and again.needed is None


def test_alternatives_that_lie_close_together_are_not_firm_with_many_questions():
    rows = evidence_of(*[HELPED] * 160, *[LOST] * 40)  # just the accuracy needed
    decision = decide(rows, (), NO_FIX, Criteria(accuracy=0.8))
    assert not decision.firm and decision.confidence < SURE and one_of(decision, "close together")


def test_a_firm_choice_is_sure_and_rests_on_enough_questions():
    few = decide(evidence_of(*[BLIND] * 29), (), NO_FIX, Criteria())
    assert few.confidence >= SURE and not few.firm and few.needed == FEWEST_QUESTIONS
    enough = decide(evidence_of(*[BLIND] * 30), (), NO_FIX, Criteria())
    assert enough.firm and enough.needed is None


def test_thirty_right_answers_of_thirty_do_not_prove_that_97_percent_are_right():
    """Wilson's interval of 30 of 30 reaches down to 89 %, but a resample of them is never wrong."""
    decision = decide(evidence_of(*[HELPED] * 30), (), NO_FIX, Criteria(accuracy=0.97))
    assert not decision.firm and decision.confidence < 1


def test_more_questions_of_the_same_kind_make_it_surer():
    rows = [HELPED] * 6 + [LOST] * 5 + [BLIND] * 4
    found = [decide(evidence_of(*rows * times), (), NO_FIX, Criteria()).confidence for times in (1, 4, 20)]
    assert found == sorted(found)


def test_the_same_evidence_gives_the_same_decision():
    rows = evidence_of(*[HELPED] * 20, *[LOST] * 12)
    assert decide(rows, (), NO_FIX, Criteria(), seed=3) == decide(rows, (), NO_FIX, Criteria(), seed=3)


def test_failed_answers_and_unanswerable_questions_do_not_count():
    rows = evidence_of(*[HELPED] * 20, *[LOST] * 20, (np.nan, 1, 0, "shown"), (0, 0, 0, None))
    decision = decide(rows, (), NO_FIX, Criteria())
    assert decision.questions == 40 and decision.projection.now == 0.5


def test_a_single_question_is_decided_without_a_claim():
    decision = decide(evidence_of(LOST), (), NO_FIX, Criteria())
    assert not decision.firm and decision.questions == 1 and decision.needed >= FEWEST_QUESTIONS


# Cheap settings in the decision


def test_a_cheap_setting_that_is_enough_comes_before_training():
    rows = evidence_of(*[HELPED] * 60, *[LOST] * 40)
    decision = decide(rows, (), tried(0.25, 0.18, 0.32), Criteria())
    assert decision.choice == "settings" and decision.firm
    assert one_of(decision, "bm25", "retriever_method: bm25", r"\+25 points \(\+18 to \+32\)", "50 questions")


def test_an_uncertain_gain_of_a_setting_makes_the_choice_uncertain():
    rows = evidence_of(*[HELPED] * 60, *[LOST] * 40)
    sure = decide(rows, (), tried(0.25, 0.23, 0.27), Criteria()).confidence
    unsure = decide(rows, (), tried(0.25, -0.15, 0.65), Criteria()).confidence
    assert unsure < sure


@pytest.mark.parametrize("n", [0, 1])
def test_a_gain_whose_interval_is_unknown_is_not_taken_for_certain(n):
    """Of one question there is no interval, of none no gain."""
    rows = evidence_of(*[HELPED] * 60, *[LOST] * 40)
    gain = 0.9 if n else float("nan")
    decision = decide(rows, (), tried(gain, float("nan"), float("nan"), n), Criteria())
    assert decision.choice != "settings" or not decision.firm


def test_what_did_worse_is_not_what_tuning_has_to_beat():
    rows = evidence_of(*[HELPED] * 60, *[LOST] * 40)
    decision = decide(rows, (), tried(-0.1, -0.15, -0.05), Criteria())
    assert decision.choice == "retriever" and not one_of(decision, "has to beat")


# Without answers


def test_zero_answers_give_an_audit_of_the_retrieval_alone_that_says_so():
    rows = without_answers(*["shown"] * 30, *["not found"] * 20)
    decision = decide(rows, [sign("missed", "retriever")], NO_FIX, Criteria())
    assert decision.choice == "retriever" and decision.headline.startswith("Retrieval only")
    assert decision.projection is None and decision.questions == 0 and not decision.firm
    assert one_of(decision, "retrieval alone", "nothing of the generator")
    assert one_of(decision, "everything needed is ranked", r"\b30 of 50\b") and one_of(decision, "The sign missed")
    assert decision.needed == FEWEST_QUESTIONS and one_of(decision, "answers", rf"\b{FEWEST_QUESTIONS}\b")


def test_without_answers_signs_of_the_generator_are_not_told():
    decision = decide(without_answers(*["shown"] * 50), [sign("format", "generator")], NO_FIX, Criteria())
    assert decision.choice == "none" and not one_of(decision, "The sign format")


def test_without_answers_the_setting_that_shows_more_is_offered():
    rows = without_answers(*["shown"] * 20, *["not found"] * 30)
    faults = [sign("missed", "retriever")]
    decision = decide(rows, faults, tried(0.4, 0.3, 0.5), Criteria())
    assert decision.choice == "settings"
    assert one_of(decision, "bm25", r"\+40 points", r"\+30 to \+50", r"\b50 questions")
    assert decide(rows, faults, tried(-0.02, -0.1, 0.06), Criteria()).choice == "retriever"


def test_fifteen_questions_without_answers_are_too_few_as_well():
    decision = decide(without_answers(*["shown"] * 6, *["not found"] * 9), (), NO_FIX, Criteria())
    assert not decision.firm and one_of(decision, r"\b15\b", r"\bfew"), sentences(decision)


def test_of_answers_without_references_only_the_retrieval_is_audited():
    rows = without_answers(*["shown"] * 30, *["not found"] * 10).assign(answered=True)
    decision = decide(rows, (), NO_FIX, Criteria())
    assert decision.headline.startswith("Retrieval only") and one_of(decision, "no references")


def test_questions_without_gold_passages_give_no_verdict_on_the_retrieval():
    rows = without_answers(*[None] * 40).assign(answered=True)
    decision = decide(rows, (), NO_FIX, Criteria())
    assert not decision.firm and not one_of(decision, r"\bnan"), sentences(decision)
    assert not one_of(decision, "leave it as it is"), "nothing was measured that would advise it"


def test_without_answers_passages_cut_for_length_are_a_matter_of_settings():
    rows = without_answers(*["cut off"] * 20, *["shown"] * 20).assign(asked=True, answered=True)
    assert decide(rows, [sign("cut_off", "settings")], NO_FIX, Criteria()).choice == "settings"


def test_questions_without_gold_passages_are_not_said_to_be_no_questions():
    decision = decide(without_answers(*[None] * 40), (), NO_FIX, Criteria())
    assert not one_of(decision, r"^0 questions are"), sentences(decision)
    assert one_of(decision, "^Questions with gold passages: there are 0, too few"), sentences(decision)
