"""The audit's first screen: what fails, how sure that is, what to do and what it costs, in words."""

from dataclasses import dataclass, replace

import pandas as pd

from ragbench.diagnosis.attribution import Attribution
from ragbench.diagnosis.audit import Diagnosis
from ragbench.diagnosis.cost import THIS_MACHINE, Bill
from ragbench.diagnosis.decision import Decision, decide
from ragbench.diagnosis.fixes import Fixes
from ragbench.diagnosis.rule import RETRIEVER_REALISED, Criteria
from ragbench.diagnosis.vocabulary import level
from ragbench.errors import RagbenchError


@dataclass(frozen=True)
class Conclusion:
    """The decision, and what to say of it.

    Attributes:
        headline, certainty: a sentence each.
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
    fails = _what_fails(diagnosis.attribution)
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


def _what_fails(split: Attribution | None) -> tuple[str, ...]:
    if split is None:
        return ()
    wrong = 1 - split.reachable("now").value
    said = [
        f"{split.scored - len(split.reachable('now').query_ids)} of {split.scored} answers are wrong ({wrong:.0%}). "
        f"Without any passages, {split.cell('known').value + split.cell('spoilt').value:.0%} would be right."
    ]
    parts = (
        ("retriever", "perfect retrieval would put right"),
        ("generator", "the generator gets wrong although all it needs was shown"),
        ("both", "fail twice: something needed was not shown, and the gold passages do not help either"),
        ("spoilt", "are wrong with passages and right without"),
    )
    for name, words in parts:
        cell = split.cell(name)
        if cell.query_ids:
            said.append(f"{cell.value:.0%} of the questions ({cell.low:.0%} to {cell.high:.0%}) {words}.")
    worst = max(split.losses, key=lambda share: share.value)
    if worst.value > 0:
        said.append(f"Where passages are lost, mostly {worst.text} ({len(worst.query_ids)} questions).")
    return tuple(said)


def _certainty(made: Decision, judge: str) -> str:
    if not made.questions:
        return "Not firm: this rests on the retrieval alone."
    probability = "more than 99%" if made.confidence > 0.99 else f"{made.confidence:.0%}"
    sure = f"for what {made.questions} questions can tell, the choice holds with a probability of {probability}"
    who = "estimated without a judge" if judge == "offline" else "said by the judge"
    by = f"What is right is {who}; how far that can be trusted is told below."
    if made.firm:
        return f"Firm: {sure}. {by}"
    if made.needed is not None:
        return f"Not firm: {made.questions} questions are too few; about {made.needed} would do. Now, {sure}. {by}"
    return f"Not firm: {sure}, and more questions like these would hardly settle it. {by}"


def _costs(made: Decision, bill: Bill) -> tuple[str, ...]:
    (now, price), (tuned, tuned_price) = bill.queries[["seconds", "cost of 1000 queries"]].to_numpy(dtype=float)
    said = [f"A query takes {now:.2f} s as it is; a thousand cost {price:.3g}."] if now else []
    if made.choice in ("settings", "none"):
        return tuple(said)
    parts = (made.choice,) if made.choice in ("retriever", "generator") else ("retriever", "generator")
    if now and "generator" in parts:
        said.append(f"With a tuned generator, {tuned:.2f} s and {tuned_price:.3g} are projected.")
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
    said.append(
        f"Labels: {bill.labels} more questions, {bill.label_hours:.0f} hours of work, {bill.label_cost:,.0f}."
        if bill.labels
        else "Labels: enough are there."
    )
    return tuple(said)


def _time(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1.5 else f"{60 * hours:.0f} minutes"
