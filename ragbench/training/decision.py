"""Whether a tuned model is kept, in words; and what every tuning leaves beside its model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ragbench.evaluation.comparison import Comparison
from ragbench.evaluation.scores import write_scores
from ragbench.files import write_json, write_text
from ragbench.training.guards import Guard


def kept_or_not(
    checked: Sequence[Guard], notes: Sequence[str], before: str = "base model", after: str = "tuned model"
) -> dict[str, Any]:
    """Return {"kept": "tuned" or "base", "reason", "notes"}: the base is kept if any check fails.

    Args:
        before, after: what the two are called.
    """
    failed = [guard for guard in checked if not guard.holds]
    if failed:
        reason = "; ".join(f"{guard.name}: no ({guard.measured})" for guard in failed)
        return {"kept": "base", "reason": f"The {before} is kept. {reason}.", "notes": list(notes)}
    return {"kept": "tuned", "reason": f"The {after} is kept: every check holds.", "notes": list(notes)}


def change_in_words(change: Comparison, name: str) -> str:
    """Return a metric's change as a sentence, under the name that readers know it by."""
    interval = f" [{change.ci[0]:+.3f}, {change.ci[1]:+.3f}]" if change.ci else ""
    return f"{name} on {change.split}: {change.difference:+.3f}{interval}, {change.n} questions."


def write_outcome(
    folder: Path,
    log: pd.DataFrame,
    scores: pd.DataFrame,
    metrics: Mapping[str, Any],
    decision: Mapping[str, Any],
    checked: Sequence[Guard],
    seconds: float,
) -> None:
    """Write scores, metrics, the log of the training, and the decision with its checks and the seconds it took."""
    write_scores(scores, folder / "scores.parquet")
    write_json(folder / "metrics.json", metrics)
    write_text(folder / "training_log.csv", log.to_csv(index=False))
    write_json(
        folder / "decision.json", {**decision, "guards": [asdict(guard) for guard in checked], "seconds": seconds}
    )
