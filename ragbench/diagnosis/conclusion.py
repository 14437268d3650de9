"""The audit's first screen: what fails, how sure that is, what to do and what it costs, in words."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ragbench.diagnosis.attribution import scored_rows
from ragbench.diagnosis.audit import Diagnosis
from ragbench.diagnosis.cost import THIS_MACHINE, Bill
from ragbench.diagnosis.decision import Decision, decide
from ragbench.diagnosis.fixes import Fixes
from ragbench.diagnosis.rule import FEWEST_QUESTIONS, RETRIEVER_REALISED, Criteria
from ragbench.diagnosis.vocabulary import level
from ragbench.errors import RagbenchError


@dataclass(frozen=True)
class Conclusion:
    """The decision, and what to say of it.

    Attributes:
        headline, certainty: what to do, and how sure that is.
        sections: heading → sentences.
    """

    decision: Decision
    headline: str
    certainty: str
    sections: dict[str, tuple[str, ...]]


def conclude(
    diagnosis: Diagnosis,
    fixes: Fixes,
    criteria: Criteria,
    bill: Bill,
    *,
    judge: str = "offline",
    right_from: float = 0.5,
    seed: int = 0,
) -> Conclusion:
    """Decide and put it into words.

    Args:
        judge: who said what is right; see `measures.measure_answers`.
        criteria: with the domain ``measured``, it is taken from the vocabulary; the cost is taken from `bill`.

    Raises:
        RagbenchError: the domain is none of measured, low, medium and high.
    """
    domain = level(diagnosis.special) if criteria.domain == "measured" else criteria.domain
    if domain not in RETRIEVER_REALISED:
        raise RagbenchError(f"decision_domain '{domain}' is unknown; use measured, {', '.join(RETRIEVER_REALISED)}.")
    known = replace(criteria, domain=domain, cost=bill.once)
    made = decide(diagnosis.evidence, diagnosis.faults, fixes, known, right_from=right_from, seed=seed)
    fails = _what_fails(diagnosis, right_from)
    return Conclusion(
        made,
        f"{made.headline}.",
        _certainty(made, judge),
        {
            "What fails": fails,
            "Why this": made.reasons,
            "What it costs": _costs(made, bill),
            "What would change it": made.would_change,
        },
    )


def _what_fails(diagnosis: Diagnosis, right_from: float) -> tuple[str, ...]:
    split = diagnosis.attribution
    if split is None:
        return ()
    known = float((scored_rows(diagnosis.evidence)["correctness_none"] >= right_from).mean())
    wrong = split.scored - len(split.reachable("now").query_ids)
    are = "is" if wrong == 1 else "are"
    said = [f"{wrong} of {_count(split.scored, 'answer')} {are} wrong ({wrong / split.scored:.0%})."]
    said.append(f"Without any passages the generator would give {known:.0%} right answers.")
    parts = (
        ("retriever", "wrong, and right with the gold passages: perfect retrieval would repair these"),
        ("generator", "wrong although all that is needed was shown, also with the gold passages alone"),
        ("both", "wrong twice over: something needed was not shown, and the gold passages do not help either"),
        ("spoilt", "wrong with passages, and right without"),
    )
    for name, words in parts:
        cell = split.cell(name)
        if cell.query_ids:
            said.append(f"{cell.value:.0%} ({cell.low:.0%} to {cell.high:.0%}): {words}.")
    worst = max((share for share in split.losses if share.name != "shown"), key=lambda share: share.value)
    if worst.query_ids:
        said.append(f"Most often, {worst.text} ({_count(len(worst.query_ids), 'question')}).")
    return tuple(said)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _certainty(made: Decision, judge: str) -> str:
    if not made.questions:
        return "Not firm: no answers could be scored, so this rests on the retrieval alone at most."
    probability = "more than 99%" if made.confidence > 0.99 else f"{made.confidence:.0%}"
    sure = (
        f"for what {_count(made.questions, 'question')} can tell, the choice holds with a probability of {probability}"
    )
    who = "estimated without a judge" if judge == "offline" else "said by the judge"
    by = f"What is right is {who}; how far that can be trusted is told below."
    if made.firm:
        return f"Firm: {sure}. {by}"
    few = f"{_count(made.questions, 'question')} are too few; " if made.questions < FEWEST_QUESTIONS else ""
    enough = f"about {made.needed:,} would do" if made.needed else "more like these would hardly settle it"
    return f"Not firm: {few}{enough}. Now, {sure}. {by}"


def _costs(made: Decision, bill: Bill) -> tuple[str, ...]:
    (now, price), (tuned, tuned_price) = bill.queries[["seconds", "cost of 1000 queries"]].to_numpy(dtype=float)
    said = []
    if now > 0:
        said.append(f"A query takes {now:.2f} s as it is{_price(price)}.")
    if made.choice in ("settings", "none"):
        return tuple(said)
    parts = (made.choice,) if made.choice in ("retriever", "generator") else ("retriever", "generator")
    if tuned > 0 and "generator" in parts:
        said.append(f"With a tuned generator, {tuned:.2f} s are projected{_price(tuned_price)}.")
    for part in parts:
        priced = bill.training[(bill.training["component"] == part) & bill.training["cost"].notna()]
        here = priced[priced["device"] == THIS_MACHINE].nsmallest(1, "cost")
        elsewhere = priced[priced["device"] != THIS_MACHINE].nsmallest(1, "cost")
        options = [
            f"{_time(row['hours'])} on {row['device']} ({row['method']}, {row['cost']:.2f})"
            for _, row in pd.concat([here, elsewhere]).iterrows()
        ]
        if options:
            said.append(f"Tuning the {part} would take {', or '.join(options)}.")
        else:
            said.append(f"What tuning the {part} would cost is not known: nothing was measured that would tell.")
    said.append(
        f"Labels: {_count(bill.labels, 'more question')}, {_time(bill.label_hours)} of work, {bill.label_cost:,.0f}."
        if bill.labels
        else "Labels: enough are there."
    )
    return tuple(said)


def _price(price: float) -> str:
    return "" if np.isnan(price) else f"; a thousand cost {price:.3g}"


def _time(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1.5 else f"{60 * hours:.0f} minutes"
