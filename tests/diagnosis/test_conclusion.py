import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ragbench.diagnosis.attribution import attribute
from ragbench.diagnosis.audit import Diagnosis
from ragbench.diagnosis.conclusion import conclude
from ragbench.diagnosis.cost import (
    THIS_MACHINE,
    Assumptions,
    Bill,
    Workload,
    labelling,
    query_costs,
    training_table,
    tuning_cost,
)
from ragbench.diagnosis.fixes import Fixes, Setting
from ragbench.diagnosis.rule import FEWEST_QUESTIONS, RETRIEVER_REALISED, Criteria
from ragbench.diagnosis.sign import Sign
from ragbench.diagnosis.throughput import Throughput
from ragbench.errors import RagbenchError
from ragbench.evaluation.evaluate import System
from ragbench.generation.generate import Generator
from ragbench.retrieval.retrieve import Retriever

NO_FIX = Fixes(pd.DataFrame(), None)
FUSION = Setting("fusion", {"retriever_method": "fusion"}, System("base", Retriever(), Generator()), True)
HELPED, LOST, BLIND, NEITHER = (1, 1, 0, "shown"), (0, 1, 0, "not found"), (0, 0, 0, "shown"), (0, 0, 0, "not found")
KNOWN, SPOILT, MISLED = (1, 1, 1, "shown"), (0, 0, 1, "shown"), (0, 1, 1, "shown")
"""(right as retrieved, right with the gold passages, right without any, stage)"""
WORK = Workload(
    labels=200,
    prompt_tokens=600.0,
    answer_tokens=60.0,
    reference_tokens=40.0,
    seconds=0.5,
    retriever_parameters=20_000_000,
    passage_tokens=500.0,
)
NO_ANSWERS = replace(WORK, prompt_tokens=np.nan, answer_tokens=np.nan, seconds=np.nan)
SPEED = Throughput("cpu", "float32", parameters=100_000_000, forward=400.0, lora=100.0, full=50.0)
ASSUMED = Assumptions(devices={THIS_MACHINE: [0.0, 0.1], "A100": [312.0, 2.0]})
DEAR = Criteria(domain="measured", worth=1.0)
"""Right answers are worth so much that training pays."""
HEADINGS = ["What fails", "Why this", "What it costs", "What would change it"]
CASES = {
    "retriever": [HELPED] * 60 + [LOST] * 30 + [BLIND] * 2,
    "generator": [HELPED] * 60 + [BLIND] * 30 + [LOST] * 2,
    "end_to_end": [HELPED] * 20 + [LOST] * 40 + [BLIND] * 40,
    "none": [HELPED] * 100,
    "every cell": [HELPED] * 20 + [KNOWN] * 20 + [LOST] * 8 + [BLIND] * 7 + [NEITHER] * 6 + [SPOILT] * 5 + [MISLED] * 4,
}


def evidence_of(*rows):
    """One row a question: right or wrong under the three conditions, and how far its passages came."""
    names = ["correctness_retrieved", "correctness_oracle", "correctness_none", "stage"]
    table = pd.DataFrame(rows, columns=names).astype(dict.fromkeys(names[:3], float))
    return table.assign(split="dev", query_id=[f"q{number}" for number in range(len(table))], asked=True, answered=True)


def without_answers(*stages):
    nothing = [(np.nan, np.nan, np.nan, stage) for stage in stages]
    return evidence_of(*nothing).assign(asked=False, answered=False)


def bill(work=WORK, speed=SPEED, assumed=ASSUMED):
    training = training_table(work, speed, assumed)
    labels, hours, cost = labelling(work, assumed)
    once = tuning_cost(training, "end_to_end", cost)
    return Bill(training, query_costs(work, assumed), pd.DataFrame(), labels, hours, cost, once)


def verdict(evidence, faults=(), fixes=NO_FIX, criteria=DEAR, paid=None, special=0.12, judge="offline"):
    found = Diagnosis(evidence, attribute(evidence), tuple(faults), tuple(faults), {}, special)
    return conclude(found, fixes, criteria, paid or bill(), judge=judge)


def said(conclusion):
    return [sentence for sentences in conclusion.sections.values() for sentence in sentences]


def one_of(conclusion, heading, *patterns):
    """The first sentence under a heading that matches all patterns, or None."""
    return next((s for s in conclusion.sections[heading] if all(re.search(p, s) for p in patterns)), None)


@pytest.mark.parametrize("choice", ["retriever", "generator", "end_to_end", "none"])
def test_with_enough_questions_the_first_screen_says_what_to_do_and_that_it_is_firm(choice):
    found = verdict(evidence_of(*CASES[choice]))
    assert found.decision.choice == choice and found.decision.firm
    assert found.headline == f"{found.decision.headline}." and len(found.headline) > 20
    assert found.certainty.startswith("Firm: ") and f"{len(CASES[choice])} questions" in found.certainty
    assert list(found.sections) == HEADINGS and all(found.sections.values())


def test_what_fails_is_told_in_shares_of_all_questions():
    found = verdict(evidence_of(*CASES["retriever"]))
    assert one_of(found, "What fails", "32 of 92 answers", r"\(35%\)")
    assert one_of(found, "What fails", r"^33% \(\d+% to \d+%\): wrong, .*perfect retrieval would repair")
    assert one_of(found, "What fails", r"^2% \(\d+% to \d+%\): wrong although all that is needed was shown")
    assert not one_of(found, "What fails", "wrong twice over") and not one_of(found, "What fails", "right without")
    assert one_of(found, "What fails", "not among those ranked", r"\(30 questions\)")


def test_every_kind_of_failure_that_occurs_is_told_with_its_share():
    found = verdict(evidence_of(*CASES["every cell"]))
    cells = {"perfect retrieval": 12, "all that is needed was shown": 7, "wrong twice over": 6, "right without": 5}
    for words, count in cells.items():
        assert one_of(found, "What fails", rf"^{count / 70:.0%} \(", words), (words, said(found))


def test_what_would_be_right_without_passages_counts_every_such_question():
    """Also one that is wrong with the retrieved passages, and right with the gold ones."""
    found = verdict(evidence_of(*CASES["every cell"]))
    right = sum(row[2] for row in CASES["every cell"]) / len(CASES["every cell"])
    assert one_of(found, "What fails", "Without any passages", f"{right:.0%}"), said(found)


def test_passages_that_were_all_shown_are_not_said_to_be_lost():
    found = verdict(evidence_of(*[HELPED] * 40, *[MISLED] * 20))
    assert not one_of(found, "What fails", "Most often|needed passage"), said(found)
    found = verdict(evidence_of(*[HELPED] * 40, *[MISLED] * 20, LOST))
    assert one_of(found, "What fails", "^Most often, a needed passage is not among those ranked", r"\(1 question\)")


def test_nothing_is_said_to_be_lost_where_nothing_is():
    found = verdict(evidence_of(*[HELPED] * 40, *[BLIND] * 20))
    assert not one_of(found, "What fails", "Most often|needed passage"), said(found)


def test_the_grounds_and_what_would_change_them_are_the_decisions():
    fault = Sign("missed", "retriever", "Missed", "A share.", 0.6, 0.5, 0.7, 50, 0.3, state="present")
    found = verdict(evidence_of(*CASES["retriever"]), [fault])
    assert found.sections["Why this"] == found.decision.reasons
    assert found.sections["What would change it"] == found.decision.would_change
    assert one_of(found, "Why this", "Missed", "60%")


@pytest.mark.parametrize("choice", ["retriever", "generator", "end_to_end"])
def test_what_the_chosen_training_costs_is_told_and_no_other(choice):
    found = verdict(evidence_of(*CASES[choice]))
    told = {re.match(r"Tuning the (\w+)", s)[1] for s in found.sections["What it costs"] if s.startswith("Tuning")}
    assert told == ({"retriever", "generator"} if choice == "end_to_end" else {choice})
    assert one_of(found, "What it costs", "^Labels: 300 more questions", r"\b25\.0 hours", r"\b1,000\.$")


def test_the_cheapest_way_to_train_is_told_for_this_machine_and_for_another():
    paid = bill()
    found = verdict(evidence_of(*CASES["end_to_end"]), paid=paid)
    for part in ("retriever", "generator"):
        said = one_of(found, "What it costs", f"^Tuning the {part} would take")
        for here in (True, False):
            jobs = paid.training[paid.training["component"] == part]
            best = jobs[here == (jobs["device"] == THIS_MACHINE)].nsmallest(1, "cost").iloc[0]
            assert f"on {best['device']} ({best['method']}, {best['cost']:.2f})" in said


def test_times_are_told_in_minutes_or_hours():
    slow = verdict(evidence_of(*CASES["generator"]), paid=bill(speed=replace(SPEED, lora=10.0, full=5.0)))
    assert one_of(slow, "What it costs", rf"^Tuning the generator would take {500 * 3 * 640 / 10 / 3600:.1f} hours on")
    fast = verdict(evidence_of(*CASES["generator"]), paid=bill(speed=replace(SPEED, lora=4000.0, full=2000.0)))
    assert one_of(fast, "What it costs", r"^Tuning the generator would take 4 minutes on this machine")


def test_queries_after_tuning_are_told_where_tuning_changes_them():
    assert one_of(verdict(evidence_of(*CASES["generator"])), "What it costs", "With a tuned generator")
    assert not one_of(verdict(evidence_of(*CASES["retriever"])), "What it costs", "With a tuned generator")


@pytest.mark.parametrize(
    ("choice", "rows", "fixes"),
    [
        ("none", CASES["none"], NO_FIX),
        ("settings", CASES["retriever"], Fixes(pd.DataFrame(), FUSION, 0.2, 0.15, 0.25, 50, 50)),
    ],
)
def test_where_nothing_is_trained_no_training_is_billed_but_the_queries_are(choice, rows, fixes):
    found = verdict(evidence_of(*rows), fixes=fixes)
    assert found.decision.choice == choice
    assert not one_of(found, "What it costs", "[Tt]uning|tuned|Labels"), said(found)
    assert one_of(found, "What it costs", "0.50 s", "thousand")


def test_labels_that_are_there_need_not_be_written():
    found = verdict(evidence_of(*CASES["retriever"]), paid=bill(replace(WORK, labels=500)))
    assert one_of(found, "What it costs", "^Labels: enough are there")


def test_one_label_is_one_question():
    found = verdict(evidence_of(*CASES["retriever"]), paid=bill(replace(WORK, labels=499)))
    assert one_of(found, "What it costs", "^Labels: 1 more question, 5 minutes of work"), said(found)


def test_the_cost_in_the_grounds_is_that_of_the_bill():
    paid = bill()
    told = one_of(verdict(evidence_of(*CASES["retriever"]), paid=paid), "Why this", "once")
    assert told and told.endswith(f"; tuning both parts and labelling cost {paid.once:,.0f} once.")
    dear = verdict(evidence_of(*CASES["retriever"]), paid=replace(paid, once=1e9))
    assert dear.decision.choice == "none"


# Few questions


FIFTEEN = {
    "mixed": [HELPED] * 6 + [LOST] * 6 + [BLIND] * 3,
    "at the accuracy needed": [HELPED] * 12 + [LOST] * 3,
    "all right": [HELPED] * 15,
    "all wrong": [BLIND] * 15,
    "nothing repairs it": [NEITHER] * 15,
}


@pytest.mark.parametrize("kind", FIFTEEN)
def test_of_fifteen_questions_the_first_screen_says_that_they_are_too_few(kind):
    found = verdict(evidence_of(*FIFTEEN[kind]))
    assert not found.decision.firm and found.certainty.startswith("Not firm: ")
    assert "15 questions are too few" in found.certainty, found.certainty
    assert one_of(found, "What would change it", "15 questions are too few")


@pytest.mark.parametrize("kind", [kind for kind in FIFTEEN if kind != "at the accuracy needed"])
def test_of_fifteen_questions_the_first_screen_names_the_number_that_would_do(kind):
    found = verdict(evidence_of(*FIFTEEN[kind]))
    assert found.decision.needed >= FEWEST_QUESTIONS and f"about {found.decision.needed} would do" in found.certainty
    assert one_of(found, "What would change it", rf"\b{found.decision.needed}\b")


def test_a_tie_of_many_questions_is_not_put_down_to_their_number():
    found = verdict(evidence_of(*[HELPED] * 160, *[LOST] * 40))
    assert found.certainty.startswith("Not firm: ") and "too few" not in found.certainty
    assert "hardly settle" in found.certainty


@pytest.mark.parametrize("row", [HELPED, KNOWN, LOST, BLIND, NEITHER, SPOILT, MISLED])
def test_of_one_question_nothing_is_firm_and_a_number_is_named(row):
    found = verdict(evidence_of(row))
    assert found.certainty.startswith("Not firm: ") and f"{found.decision.needed}" in found.certainty


def test_one_question_is_one_question():
    found = verdict(evidence_of(LOST))
    plural = [s for s in (found.certainty, *said(found)) if re.search(r"\b1 (questions|answers are)\b", s)]
    assert not plural, plural


@pytest.mark.parametrize("kind", ["retriever", "mixed"])
def test_who_said_what_is_right_is_told_with_the_certainty(kind):
    rows = evidence_of(*(CASES | FIFTEEN)[kind])
    assert "estimated without a judge" in verdict(rows).certainty
    judged = verdict(rows, judge="endpoint").certainty
    assert "said by the judge" in judged and "without a judge" not in judged


# All right, all wrong


def test_where_all_is_right_nothing_fails_and_nothing_is_to_be_done():
    found = verdict(evidence_of(*[HELPED] * 60, *[KNOWN] * 40))
    assert found.decision.choice == "none" and found.decision.firm and found.headline.startswith("Leave it as it is")
    first, second = found.sections["What fails"]
    assert re.search(r"\b0 of 100 answers are wrong \(0%\)", first)
    assert second.startswith("Without any passages") and "40% right answers" in second


def test_where_all_is_wrong_for_the_same_reason_that_reason_is_the_only_one():
    found = verdict(evidence_of(*[BLIND] * 100))
    assert found.decision.choice == "generator"
    first, second, third = found.sections["What fails"]
    assert "100 of 100 answers are wrong" in first and "0% right answers" in second
    assert third.startswith("100% (") and "all that is needed was shown" in third


def test_what_was_never_seen_otherwise_is_not_said_to_be_certain():
    """The probability comes from a few hundred draws, which cannot tell 99.9 % from 100 %."""
    certainty = verdict(evidence_of(*[BLIND] * 200)).certainty
    assert "probability of more than 99%" in certainty and "100%" not in certainty


# Without answers


def test_without_answers_it_is_said_to_rest_on_the_retrieval_alone():
    found = verdict(without_answers(*["shown"] * 30, *["not found"] * 20), paid=bill(NO_ANSWERS))
    assert found.headline.startswith("Retrieval only: ")
    assert "retrieval alone" in found.certainty and found.certainty.startswith("Not firm")
    assert found.sections["What fails"] == ()
    assert one_of(found, "Why this", "audit of the retrieval alone", "nothing of the generator")
    assert one_of(found, "Why this", "everything needed is ranked high enough", "30 of 50")


def test_without_answers_no_cost_of_a_query_is_told():
    found = verdict(without_answers(*["shown"] * 50), paid=bill(NO_ANSWERS))
    assert found.sections["What it costs"] == ()


def test_without_gold_passages_it_is_not_said_to_rest_on_the_retrieval():
    found = verdict(without_answers(*[None] * 40), paid=bill(NO_ANSWERS))
    assert found.headline.startswith("Nothing can be decided")
    assert "rests on the retrieval alone at most" in found.certainty
    assert one_of(found, "Why this", "^No question has gold passages", "cannot be judged")


# A served generator


SERVED = bill(speed=None, assumed=replace(ASSUMED, price_input=2.0, price_output=6.0))


def test_of_a_served_generator_the_queries_cost_their_tokens():
    found = verdict(evidence_of(*CASES["retriever"]), paid=SERVED)
    assert one_of(found, "What it costs", "^Tuning the retriever", "A100")
    assert one_of(found, "What it costs", "as it is", rf"{1000 * (600 * 2 + 60 * 6) / 1e6:.3g}\.$")


@pytest.mark.parametrize("choice", ["generator", "end_to_end"])
def test_what_tuning_a_served_generator_costs_is_said_not_to_be_known(choice):
    found = verdict(evidence_of(*CASES[choice]), paid=SERVED)
    assert found.decision.choice == choice
    assert one_of(found, "What it costs", "tuning the generator would cost is not known"), said(found)
    assert not one_of(found, "What it costs", "^Tuning the generator"), said(found)


def test_a_price_that_is_not_known_is_not_printed_as_a_number():
    elsewhere = bill(assumed=replace(ASSUMED, devices={"A100": [312.0, 2.0]}))
    found = verdict(evidence_of(*CASES["retriever"]), paid=elsewhere)
    assert not any(re.search(r"\bnan\b", sentence) for sentence in said(found)), said(found)


# The domain


WORDS = {"low": "general vocabulary", "medium": "fairly special vocabulary", "high": "very special vocabulary"}


@pytest.mark.parametrize(("special", "domain"), [(0.05, "low"), (0.12, "medium"), (0.4, "high")])
def test_a_measured_domain_comes_from_the_vocabulary(special, domain):
    found = verdict(evidence_of(*CASES["retriever"]), special=special)
    taken = rf"repairs {RETRIEVER_REALISED[domain]:.0%} of what it could \({WORDS[domain]}\)"
    assert one_of(found, "Why this", taken), said(found)


def test_a_named_domain_is_taken_as_it_is():
    found = verdict(evidence_of(*CASES["retriever"]), criteria=replace(DEAR, domain="high"), special=0.0)
    assert one_of(found, "Why this", r"repairs 50% of what it could \(very special vocabulary\)"), said(found)


def test_an_unknown_domain_names_the_known_ones():
    with pytest.raises(RagbenchError, match=r"'medical'.*measured, low, medium, high"):
        verdict(evidence_of(HELPED), criteria=Criteria(domain="medical"))


# Sentences


@pytest.mark.parametrize("case", [*CASES, *FIFTEEN])
def test_the_sentences_are_sentences(case):
    rows = evidence_of(*(CASES | FIFTEEN)[case])
    found = verdict(rows, fixes=Fixes(pd.DataFrame(), FUSION, 0.02, -0.05, 0.09, 50, 50))
    for sentence in (found.headline, found.certainty, *said(found)):
        assert sentence.endswith(".") and not sentence.endswith("..") and "  " not in sentence, sentence
        assert not re.search(r"\b(nan|None)\b", sentence), sentence


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_sentence_begins_with_a_capital_or_a_number(heading):
    small = [s for s in verdict(evidence_of(*CASES["every cell"])).sections[heading] if s[0].islower()]
    assert not small, small


def test_the_same_findings_give_the_same_verdict():
    assert verdict(evidence_of(*CASES["every cell"])) == verdict(evidence_of(*CASES["every cell"]))
