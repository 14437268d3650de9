"""The audit in one call: from what a system answered to what is wrong with it."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd

from ragbench.collection.schema import Collection, passage_texts
from ragbench.diagnosis.attribution import Attribution, attribute, shares_table
from ragbench.diagnosis.bottleneck import explained, faults
from ragbench.diagnosis.counterfactual import Trial
from ragbench.diagnosis.evidence import gather
from ragbench.diagnosis.measures import Measured
from ragbench.diagnosis.sign import Sign, Thresholds
from ragbench.diagnosis.signs import all_signs
from ragbench.diagnosis.topics import topics_of
from ragbench.diagnosis.vocabulary import special_share
from ragbench.errors import RagbenchError
from ragbench.evaluation.cases import Case, named_cases
from ragbench.evaluation.evaluate import Outcome
from ragbench.retrieval.encoder import Encoder

SAMPLE = 500
"""Passages, evenly spread over the corpus, on which its vocabulary is measured."""


@dataclass(frozen=True)
class Diagnosis:
    """What the audit found.

    Attributes:
        evidence: one row a question, see `evidence.gather`.
        attribution: the split of the error; None where no answers could be scored.
        signs: all signs, as measured.
        faults: those present that no other one explains, the worst first.
        consequences: name of a present sign → name of the one that explains it.
        special: mean share of special words in the collection's passages.
    """

    evidence: pd.DataFrame
    attribution: Attribution | None
    signs: tuple[Sign, ...]
    faults: tuple[Sign, ...]
    consequences: dict[str, str]
    special: float


def diagnose(
    collection: Collection,
    trial: Trial,
    measures: pd.DataFrame,
    encoder: Encoder,
    thresholds: Thresholds | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Find out what is wrong with a system from its questions, run and answers.

    Args:
        measures: columns condition, query_id, measure, value, see `measures`.
        encoder: the fixed encoder.
    """
    limits = thresholds or Thresholds()
    evidence = gather(collection, trial, measures, encoder)
    signs = all_signs(evidence, topics_of(collection, trial, encoder, seed), limits)
    return Diagnosis(
        evidence,
        attribute(evidence, limits.right, seed),
        signs,
        faults(signs),
        explained(signs),
        _special_words(collection, encoder),
    )


def _special_words(collection: Collection, encoder: Encoder) -> float:
    rows = np.unique(np.linspace(0, len(collection.corpus) - 1, SAMPLE).astype(int))
    return float(special_share(passage_texts(collection, rows).to_pylist(), encoder).mean())


def thresholds_from(values: Mapping[str, float], measured: Measured) -> Thresholds:
    """Return the thresholds with some replaced; what counts as supported and relevant is as `measured`, if not named.

    Raises:
        RagbenchError: a name is no threshold, or a value is not between 0 and 1.
    """
    names = {field.name for field in fields(Thresholds)}
    for name, value in values.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" There are: {', '.join(sorted(names))}."
            raise RagbenchError(f"audit_thresholds: there is no threshold '{name}'.{hint}")
        if name == "fewest" and value < 1:
            raise RagbenchError(f"audit_thresholds: 'fewest' must be at least 1, found {value}.")
        if name != "fewest" and not 0 <= value <= 1:
            raise RagbenchError(f"audit_thresholds: '{name}' must lie between 0 and 1, found {value}.")
    chosen = {"grounded": measured.supported_from, "relevant": measured.relevant_from, **values}
    return Thresholds(**{name: int(value) if name == "fewest" else value for name, value in chosen.items()})  # type: ignore[arg-type]


def sign_examples(
    collection: Collection, outcome: Outcome, trial: Trial, diagnosis: Diagnosis, limit: int = 3
) -> dict[str, list[Case]]:
    """Return for each sign up to `limit` answered questions that show it, with the answer that the sign looked at.

    That is the one from the gold passages for the generator's signs, unless everything needed was retrieved.
    """
    whole = set(diagnosis.evidence["query_id"][diagnosis.evidence["stage"] == "shown"])
    oracle = {name: answer for name, answer in trial.answers.get("oracle", {}).items() if name not in whole}
    given = replace(outcome, answers=outcome.answers | oracle)
    examples = {}
    for sign in diagnosis.signs:
        as_retrieved = sign.component != "generator" or sign.name in ("format", "answers_anyway")
        answered = [name for name in sign.query_ids if name in outcome.answers]
        examples[sign.name] = named_cases(collection, outcome if as_retrieved else given, answered[:limit])
    return examples


def split_table(diagnosis: Diagnosis) -> pd.DataFrame:
    """Return the cells of the attribution for the plot, those without questions left out (see `shares_table`)."""
    table = shares_table(diagnosis.attribution.cells if diagnosis.attribution else ())
    return table[table["questions"] > 0]


def attribution_table(diagnosis: Diagnosis) -> pd.DataFrame:
    """Return columns part, what, share, low, high, questions: headroom, gains over now, and where passages are lost."""
    if diagnosis.attribution is None:
        return pd.DataFrame(columns=["part", "what", "share", "low", "high", "questions"])
    found = diagnosis.attribution
    parts = [("reachable", found.headroom), ("gain", found.gains), ("lost", found.losses)]
    tables = [shares_table(shares).drop(columns="name").assign(part=part) for part, shares in parts]
    table = pd.concat(tables, ignore_index=True).rename(columns={"text": "what", "value": "share"})
    return table[["part", "what", "share", "low", "high", "questions"]]
