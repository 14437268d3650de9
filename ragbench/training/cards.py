"""What the cards of data and models share, as Markdown."""

from collections.abc import Mapping
from typing import Any


def listed(entries: Mapping[str, Any]) -> str:
    """Return a list of names and values; "none" if there is nothing."""
    return "\n".join(f"- {name}: {value}" for name, value in entries.items()) or "none"


def measured(metrics: Mapping[str, Any], system: str) -> str:
    """Return the section of a model's card on what was measured before and after.

    Args:
        metrics: the ``systems`` of a metrics.json, on dev and ood: ``base``, and `system` after tuning.
    """
    table = "\n".join(
        f"| {split} | {metric} | {_cell(metrics['base'][split][metric])} | {_cell(entry)} |"
        for split, values in metrics[system].items()
        for metric, entry in values.items()
    )
    return f"""## Measured

Mean over questions with its 95 % bootstrap interval. Dev chose the checkpoint, so its numbers flatter; the test split
was not looked at here.

| split | metric | as it came | after tuning |
|---|---|---|---|
{table}"""


def _cell(entry: Mapping[str, Any]) -> str:
    interval = f" [{entry['ci'][0]:.3f}, {entry['ci'][1]:.3f}]" if entry["ci"] else ""
    return "–" if entry["mean"] is None else f"{entry['mean']:.3f}{interval} (n = {entry['scored']})"
