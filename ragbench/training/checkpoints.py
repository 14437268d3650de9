"""What every fine-tuning keeps in the cache folder: checkpoints to go on from, and in the end the record of it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerState, TrainingArguments

from ragbench.errors import RagbenchError

STORE = "training"
"""The part of the cache folder with checkpoints and finished models."""
MODEL, RECORD = "model", "record.json"
"""In the folder of a training: its best model, and how that came about. The record is written last."""
_PLACES = ("output_dir", "run_name", "logging_dir", "hub_token", "push_to_hub_token")
"""Arguments that say where, not how: they do not change what is learned."""


def settings(arguments: TrainingArguments) -> str:
    """Return all of a trainer's arguments that its result depends on, as text to hash."""
    known = {name: value for name, value in arguments.to_dict().items() if name not in _PLACES}
    return json.dumps(known, sort_keys=True, default=str)


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that was written whole; the trainer's state is its last file."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return str(path)
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
    return None


def best_checkpoint(state: TrainerState, folder: Path) -> Path | None:
    """Return the best checkpoint, or None where none was ever measured.

    The trainer's own loading of the best is not relied on: where it fails, it logs that and keeps the last weights.

    Raises:
        RagbenchError: the best checkpoint is not there.
    """
    if not state.best_global_step:
        return None
    path = folder / f"checkpoint-{state.best_global_step}"
    if not path.is_dir():
        raise RagbenchError(f"The best checkpoint {path} is gone. Delete {folder}, and train again.")
    return path


def drop_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a training that has ended."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def tidy_log(history: Sequence[dict[str, Any]], measured: dict[str, str]) -> pd.DataFrame:
    """Return a row a step from a trainer's history, in which losses and evaluations are rows of their own.

    Columns step, epoch, loss, learning_rate, grad_norm, and those of `measured` (the trainer's name → the column's).
    """
    steps: dict[int, dict[str, Any]] = {}
    for entry in history:
        row = steps.setdefault(entry["step"], {"step": entry["step"], "epoch": entry["epoch"]})
        row |= {name: entry[name] for name in ("loss", "learning_rate", "grad_norm") if name in entry}
        row |= {column: entry[name] for name, column in measured.items() if name in entry}
    columns = ["step", "epoch", "loss", "learning_rate", "grad_norm", *measured.values()]
    return pd.DataFrame(steps.values()).reindex(columns=columns)
