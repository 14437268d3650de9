"""Whether a tuned model is kept, in words; and what every tuning leaves beside its model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from ragbench.evaluation.comparison import Comparison
from ragbench.evaluation.evaluate import Outcome
from ragbench.evaluation.systems import write_outcomes
from ragbench.files import write_json, write_text
from ragbench.training.guards import Guard


class Training(Protocol):
    """What a training says of itself: its log, a row a step, and the seconds it took."""

    @property
    def log(self) -> pd.DataFrame:
        """A row a step."""

    @property
    def seconds(self) -> float:
        """Over all attempts."""


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


def write_training(
    folder: Path,
    trained: Training,
    outcomes: Sequence[Outcome],
    scores: pd.DataFrame,
    metrics: Mapping[str, Any],
    decision: Mapping[str, Any],
    checked: Sequence[Guard],
) -> None:
    """Write what every training leaves beside its models.

    Runs, answers and scores (`systems.write_outcomes`), metrics.json, training_log.csv, and decision.json with the
    checks and the seconds that the training took.
    """
    write_outcomes(folder, outcomes, scores)
    write_json(folder / "metrics.json", metrics)
    write_text(folder / "training_log.csv", trained.log.to_csv(index=False))
    guards = [asdict(guard) for guard in checked]
    write_json(folder / "decision.json", {**decision, "guards": guards, "seconds": trained.seconds})
