"""The table of scores: long form, one row for each system, split, metric and query; and what sums it up.

A value that could not be had is missing, never 0, and still counts in `n`. A metric that does not apply to a question
(the rank of gold passages for one that cannot be answered) has no row.
"""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from ragbench.files import atomic_path

COLUMNS = ["system", "split", "metric", "query_id", "value"]


def bootstrap_interval(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of the mean over questions (Efron 1979); None below two values."""
    if len(values) < 2:
        return None
    result = bootstrap((values,), np.mean, n_resamples=resamples, confidence_level=0.95, method="percentile", rng=seed)
    # Sorted, as for equal values rounding can put the lower end above the upper one.
    low, high = sorted((float(result.confidence_interval.low), float(result.confidence_interval.high)))
    return low, high


def summarise(scores: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Return ``{system: {split: {metric: {"mean", "ci", "n", "scored"}}}}`` of a score table.

    `mean` and `ci` are over the scored questions and null where there are none; `n` counts all of them.
    """
    summary: dict[str, Any] = {}
    for key, group in scores.groupby(["system", "split", "metric"], sort=False):
        system, split, metric = cast(tuple[str, str, str], key)
        values = group["value"].dropna().to_numpy(dtype=float)
        interval = bootstrap_interval(values, seed)
        summary.setdefault(system, {}).setdefault(split, {})[metric] = {
            "mean": float(values.mean()) if len(values) else None,
            "ci": list(interval) if interval and not any(map(math.isnan, interval)) else None,
            "n": len(group),
            "scored": len(values),
        }
    return summary


def pooled(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the table with all its splits taken as one, under their joined names."""
    return scores.assign(split=" + ".join(dict.fromkeys(scores["split"])))


def write_scores(scores: pd.DataFrame, path: Path) -> None:
    """Write scores.parquet."""
    with atomic_path(path) as temporary:
        scores[COLUMNS].astype({"value": "float64"}).to_parquet(temporary, index=False)


def of_answers(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of answers: those of what was retrieved and shown are the same for every generator."""
    return scores[~scores["metric"].str.contains("@|context_", regex=True)].reset_index(drop=True)
