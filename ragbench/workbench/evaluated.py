"""Runs of different experiments side by side: read what each measured, refuse what cannot be compared, write a page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ragbench.errors import RagbenchError
from ragbench.files import write_text
from ragbench.workbench.reports import TEMPLATES, shortened
from ragbench.workbench.stages import check_file, read_meta
from ragbench.workbench.tables import against_base, comparison_rows, fill

STAGE = "06_evaluation"


@dataclass(frozen=True)
class Evaluated:
    """One system of one run.

    Attributes:
        name: of the run's folder and the system, for people.
        collection: SHA-256 of the collection: passages, questions, qrels.
        parameters: of the evaluation.
        scores: columns split, metric, query_id, value.
    """

    name: str
    collection: str
    parameters: dict[str, Any]
    scores: pd.DataFrame


def read_evaluated(run: Path, system: str = "") -> Evaluated:
    """Read one system of a run: the named one, or the one that its verdict says to use.

    Raises:
        RagbenchError: the evaluation has not run, its files have changed, or it has no such system.
    """
    folder = run / STAGE
    meta = read_meta(folder)
    for name in ("scores.parquet", "verdict.json"):
        check_file(folder / name, meta["outputs"].get(name, ""))
    chosen = system or json.loads((folder / "verdict.json").read_text(encoding="utf-8"))["use"]
    scores = pd.read_parquet(folder / "scores.parquet")
    if chosen not in set(scores["system"]):
        there = ", ".join(dict.fromkeys(scores["system"]))
        raise RagbenchError(f"{run} has no system '{chosen}'; it has: {there}.")
    found = scores[scores["system"] == chosen].drop(columns="system").reset_index(drop=True)
    return Evaluated(f"{run.resolve().name}: {chosen}", meta["inputs"]["collection"], meta["parameters"], found)


def check_comparable(runs: Sequence[Evaluated]) -> None:
    """Check that all runs were asked the same questions of the same collection.

    Raises:
        RagbenchError: there are fewer than two, two have one name, or they differ in collection, qrels or questions.
    """
    if len(runs) < 2:
        raise RagbenchError("Give at least two runs to compare.")
    first, asked = runs[0], _asked(runs[0])
    for other in runs[1:]:
        if sum(other.name == each.name for each in runs) > 1:
            raise RagbenchError(f"'{other.name}' stands twice; copy one run to a folder with another name.")
        if other.collection != first.collection:
            raise RagbenchError(
                f"{other.name} was evaluated on another collection than {first.name}: passages, questions or qrels "
                "differ. Run both on the same one."
            )
        apart = asked ^ _asked(other)
        if apart:
            raise RagbenchError(
                f"{other.name} was asked other questions than {first.name}: {len(apart)} are in one only, such as "
                f"{', '.join(repr(name) for _, name in sorted(apart)[:3])}. Evaluate both with the same "
                "evaluation_questions, evaluation_splits and seed."
            )


def _asked(run: Evaluated) -> set[tuple[str, str]]:
    return set(zip(run.scores["split"], run.scores["query_id"], strict=True))


def joined(runs: Sequence[Evaluated]) -> pd.DataFrame:
    """Return one table of scores, in which each run is a system under its name."""
    return pd.concat([run.scores.assign(system=run.name) for run in runs], ignore_index=True)


def differing(runs: Sequence[Evaluated]) -> list[list[str]]:
    """Return the parameters in which the evaluations differ: name, then the value in each run."""
    names = list(dict.fromkeys(name for run in runs for name in run.parameters))
    values = {name: [repr(shortened(run.parameters.get(name))) for run in runs] for name in names}
    return [[name, *found] for name, found in values.items() if len(set(found)) > 1]


def write_comparison(path: Path, runs: Sequence[Evaluated], metrics: Mapping[str, Any]) -> None:
    """Write the page: each run against the first, split by split, and every comparison.

    Args:
        metrics: ``systems`` and ``comparisons`` as in a metrics.json, a system for each run.
    """
    first = runs[0].name
    splits = dict.fromkeys(entry["split"] for entry in metrics["comparisons"])
    page = fill(
        "compare.html.j2",
        css=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        runs=[run.name for run in runs],
        changes=[(split, against_base(metrics, split, first).data) for split in splits],
        comparisons=comparison_rows(metrics),
        parameters=differing(runs),
    )
    write_text(path, page)
