"""The audit of several systems on the same questions: which signs went away, and where the error comes from now."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ragbench.collection.schema import Collection
from ragbench.diagnosis.attribution import CELLS
from ragbench.diagnosis.audit import Diagnosis, diagnose, thresholds_from
from ragbench.diagnosis.counterfactual import answer_counterfactually, each_question
from ragbench.diagnosis.findings import all_scores
from ragbench.diagnosis.measures import measure_answers
from ragbench.diagnosis.sign import Sign
from ragbench.evaluation.answer_metrics import HOUSE_STYLE
from ragbench.evaluation.evaluate import Outcome, System
from ragbench.evaluation.judge import Judge
from ragbench.retrieval.encoder import Encoder


@dataclass(frozen=True)
class Examined:
    """A system's outcome with all its scores, the measures of its answers among them, and its diagnosis.

    Attributes:
        spent: what a judge cost, in words.
    """

    system: System
    outcome: Outcome
    scores: pd.DataFrame
    diagnosis: Diagnosis
    spent: str


def examine(
    collection: Collection,
    systems: Sequence[System],
    outcomes: Sequence[Outcome],
    encoder: Encoder,
    *,
    kind: str,
    llm: Judge,
    likelihood_model: str = "",
    answer_format: str = HOUSE_STYLE,
    thresholds: Mapping[str, float] | None = None,
    again: int = 0,
    seed: int = 0,
) -> list[Examined]:
    """Diagnose each system on what it was asked.

    From where on an answer counts as supported is measured on the first system, and the same for all.

    Args:
        encoder: the fixed encoder.
        kind, llm, likelihood_model: see `measures.measure_answers`.
        thresholds: see `audit.thresholds_from`.
        again: of the questions, so many are also asked with the gold passages and with none, the same for all systems;
            0 for all. What is seen in answers from retrieved passages is seen in all of them.

    Raises:
        RagbenchError: a threshold, a model or a judge cannot be used.
    """
    limits = None
    asked = [query.id for _, query in each_question(outcomes[0].questions)]
    chosen = set(asked if not 0 < again < len(asked) else [asked[n * len(asked) // again] for n in range(again)])
    examined = []
    for system, outcome in zip(systems, outcomes, strict=True):
        asked_again = {name: answer for name, answer in outcome.answers.items() if name in chosen}
        trial = answer_counterfactually(collection, outcome.questions, outcome.run, asked_again, system.generator)
        trial = replace(trial, answers={**trial.answers, "retrieved": outcome.answers})
        measured = measure_answers(
            collection, trial, encoder, kind=kind, llm=llm, likelihood_model=likelihood_model,
            answer_format=answer_format,
        )  # fmt: skip
        llm = replace(llm, spent=llm.spent + measured.paid)  # one cap for all systems
        limits = limits or thresholds_from(thresholds or {}, measured)
        diagnosis = diagnose(collection, trial, measured.table, encoder, limits, seed)
        examined.append(Examined(system, outcome, all_scores(outcome, measured, kind), diagnosis, measured.spent))
    return examined


def signs_table(examined: Sequence[Examined]) -> pd.DataFrame:
    """Return a row a sign: its title, and for each system its state and rate with interval."""
    rows = []
    for signs in zip(*(each.diagnosis.signs for each in examined), strict=True):
        row = {"sign": signs[0].title}
        row.update({each.system.name: _in_words(sign) for each, sign in zip(examined, signs, strict=True)})
        rows.append(row)
    return pd.DataFrame(rows)


def _in_words(sign: Sign) -> str:
    if math.isnan(sign.rate):
        return f"{sign.state}: too few questions, n = {sign.n}"
    return f"{sign.state}: {sign.rate:.2f} [{sign.low:.2f}, {sign.high:.2f}], n = {sign.n}"


def what_became(examined: Sequence[Examined]) -> list[str]:
    """Return a sentence for each sign that the first system shows: in which of the others it is gone."""
    first, *others = examined
    sentences = []
    for place, sign in enumerate(first.diagnosis.signs):
        if sign.state not in ("present", "possible"):
            continue
        now: dict[str, list[str]] = {}
        for each in others:
            now.setdefault(each.diagnosis.signs[place].state, []).append(each.system.name)
        after = "; ".join(f"{state} with {', '.join(names)}" for state, names in now.items())
        sentences.append(f"{sign.title}: {sign.state} with {first.system.name}; {after}.")
    appeared = [
        f"{sign.title} is new with {each.system.name}: {_in_words(sign)}."
        for each in others
        for sign, old in zip(each.diagnosis.signs, first.diagnosis.signs, strict=True)
        if sign.state == "present" and old.state in ("absent", "unknown")
    ]
    return sentences + appeared or [f"{first.system.name} shows no sign, and none appeared."]


def attribution_table(examined: Sequence[Examined]) -> pd.DataFrame:
    """Return a row a cell of the attribution (`attribution.CELLS`): its share with interval under each system."""
    known = {each.system.name: each.diagnosis.attribution for each in examined if each.diagnosis.attribution}
    if not known:
        return pd.DataFrame(columns=["share of questions"])
    return pd.DataFrame(
        [
            {"share of questions": text}
            | {
                name: f"{cell.value:.2f} [{cell.low:.2f}, {cell.high:.2f}]"
                for name, found in known.items()
                for cell in [found.cell(key)]
            }
            for key, text in CELLS.items()
        ]
    )
