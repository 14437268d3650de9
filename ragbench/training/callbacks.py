"""What happens during a training besides training: a bar, a clock that outlives crashes, an end at the first NaN."""

import json
import math
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ragbench.errors import RagbenchError
from ragbench.files import write_json


class Progress(TrainerCallback):
    """A bar over the steps, with the last loss and the last measurement on dev."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar where the training goes on."""
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")
        self._shown: dict[str, str] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the newest numbers."""
        for name, value in (logs or {}).items():
            if name == "loss" or name.endswith("ndcg@10"):
                self._shown["dev" if name.endswith("ndcg@10") else name] = f"{value:.3f}"
        self._bar.set_postfix(self._shown)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        self._bar.close()


class Clock(TrainerCallback):
    """The seconds spent so far, kept beside the checkpoints, so that an interrupted training is timed whole."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "clock.json"
        self._earlier = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds in this and, up to their last checkpoints, in earlier attempts."""
        return self._earlier + time.monotonic() - self._started

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Add what earlier attempts took, if this one goes on from a checkpoint."""
        if state.global_step and self._path.is_file():
            self._earlier = float(json.loads(self._path.read_text(encoding="utf-8"))["seconds"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write down the time at each checkpoint."""
        write_json(self._path, {"seconds": round(self.seconds, 2)})


class StopAtNaN(TrainerCallback):
    """An end with a reason when the loss or the gradient is no number: what follows would be lost time."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Look at the newest numbers.

        Raises:
            RagbenchError: one of them is not finite.
        """
        bad = [name for name in ("loss", "grad_norm") if not math.isfinite((logs or {}).get(name, 0.0))]
        if bad:
            raise RagbenchError(
                f"The training's {bad[0]} was no number at step {state.global_step} of {state.max_steps}, with "
                f"learning rate {args.learning_rate:g}. Lower the learning rate, or train in float32 (dtype)."
            )
