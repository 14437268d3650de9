"""The same experiment with several seeds: how far its differences spread, beside their interval over the questions."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragbench.errors import RagbenchError
from ragbench.files import write_text
from ragbench.workbench.reports import TEMPLATES
from ragbench.workbench.tables import fill

EVALUATION = "06_evaluation"
ONCE = ("01_audit", "07_deployment")
"""Stages that no seed of the training changes, or that come after it was chosen."""
HEAD = ["system", "split", "metric", "mean difference", "between seeds", "standard deviation", "over questions"]


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a list such as ``1,2,3``.

    Raises:
        RagbenchError: it is not a list of at least two different whole numbers.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise RagbenchError(f"--seeds takes at least two different whole numbers, such as 1,2,3; found '{text}'.")
    return seeds


def seed_folder(run: Path, seed: int) -> Path:
    """Return the folder of one seed's results, within that of the experiment."""
    return run / f"seed-{seed}"


def spread(run: Path, seeds: list[int]) -> list[list[str]]:
    """Return a row for each paired comparison, its cells as `HEAD` names them.

    The mean over the seeds of the difference between two systems, its lowest and highest value and standard deviation
    between seeds, and the mean width of its interval over questions: what more questions would narrow, and more seeds
    would not.
    """
    found = [_differences(seed_folder(run, seed)) for seed in seeds]
    return [_row(key, [each[key] for each in found]) for key in found[0] if all(key in each for each in found)]


_Key = tuple[str, str, str, str]


def _differences(folder: Path) -> dict[_Key, Mapping[str, Any]]:
    metrics = json.loads((folder / EVALUATION / "metrics.json").read_text(encoding="utf-8"))
    return {
        (entry["baseline"], entry["system"], entry["split"], entry["metric"]): entry
        for entry in metrics["comparisons"]
        if entry["ci"] is not None
    }


def _row(key: _Key, entries: list[Mapping[str, Any]]) -> list[str]:
    baseline, system, split, metric = key
    values = [entry["difference"] for entry in entries]
    half = statistics.mean((entry["ci"][1] - entry["ci"][0]) / 2 for entry in entries)
    return [
        f"{system} against {baseline}",
        split,
        metric,
        f"{statistics.mean(values):+.3f}",
        f"{min(values):+.3f} to {max(values):+.3f}",
        f"{statistics.stdev(values):.3f}",
        f"± {half:.3f}",
    ]


def write_spread(run: Path, seeds: list[int]) -> Path:
    """Write seeds.html, with links to the pages of the seeds; return its path."""
    page = fill(
        "seeds.html.j2",
        css=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        run=run.name,
        head=HEAD,
        rows=spread(run, seeds),
        seeds=seeds,
    )
    write_text(run / "seeds.html", page)
    return run / "seeds.html"
