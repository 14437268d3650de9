"""How far joint training has come: written down at every look, so that a killed run goes on, and finished."""

import dataclasses
import shutil
import time
from pathlib import Path

import torch

from ragbench.files import write_json
from ragbench.generation.generate import Generator
from ragbench.training import guards
from ragbench.training.checkpoints import RECORD
from ragbench.training.joint_looks import Look, best_of
from ragbench.training.joint_models import Models, save_models
from ragbench.training.joint_session import Session, refresh

STATE = "state.pt"


def _passages_sum(models: Models) -> float:
    """Return a number that changes when the passages' encoder does, where that should stay as it is."""
    if models.both_sides:
        return 0.0
    return float(sum(weight.double().sum() for weight in models.passages.parameters()))


def _copied(models: Models) -> dict[str, torch.Tensor]:
    return {name: weight.detach().cpu().clone() for name, weight in models.trained().items()}


class Progress:
    """How far training has come; written down at every look, so that a killed run goes on from there."""

    def __init__(self, models: Models, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        self._models, self._optimizer, self._folder = models, optimizer, folder
        self._began, self._earlier = time.monotonic(), 0.0
        self.step = 0
        self.log: list[dict[str, float]] = []
        self.looks: list[Look] = []
        self.stopped: str | None = None
        self._start = _copied(models)
        self._passages = _passages_sum(models)
        self._best: dict[str, torch.Tensor] = {}

    @property
    def _seconds(self) -> float:
        return self._earlier + time.monotonic() - self._began

    def resume(self, session: Session) -> None:
        """Go on from the last look, if there is one."""
        path = self._folder / STATE
        if not path.is_file():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self._models.load(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.log, self.stopped = state["step"], state["log"], state["stopped"]
        self.looks = [Look(**entry) for entry in state["looks"]]
        self._start, self._best, self._earlier = state["start"], state["best"], state["seconds"]
        session.likelihoods = {(name, row): value for name, row, value in state["likelihoods"]}
        if self._models.both_sides and self.step:
            refresh(session)

    def note(self, seen: Look, session: Session) -> None:
        """Add a look, keep the weights if it is the best, and write everything down."""
        self.looks.append(seen)
        weights = _copied(self._models)
        if best_of(self.looks) is seen:
            self._best = weights
        state = {
            "weights": weights,
            "best": self._best,
            "start": self._start,
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "log": self.log,
            "looks": [dataclasses.asdict(entry) for entry in self.looks],
            "stopped": self.stopped,
            "seconds": self._seconds,
            "likelihoods": [(name, row, value) for (name, row), value in session.likelihoods.items()],
        }
        partial = self._folder / f"{STATE}.partial"
        torch.save(state, partial)
        partial.replace(self._folder / STATE)

    def finish(self, generator: Generator) -> None:
        """Write the best state's models, and the record of the training last."""
        best = best_of(self.looks)
        self._models.load(self._best)
        for name in ("retriever", "generator"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        save_models(self._models, self._folder / "retriever", self._folder / "generator", generator)
        record = {
            "log": self.log,
            "looks": [dataclasses.asdict(entry) for entry in self.looks],
            "best_step": best.step,
            "stopped": self.stopped,
            "seconds": round(self._seconds, 1),
            "guards": [dataclasses.asdict(guard) for guard in self._guards(best)],
        }
        write_json(self._folder / RECORD, record)
        (self._folder / STATE).unlink(missing_ok=True)

    def _guards(self, best: Look) -> list[guards.Guard]:
        first = self.looks[0]
        found = [
            guards.Guard(
                "dev improved",
                best.step > 0,
                f"loss of an answer's token {first.loss:.4f} before, {best.loss:.4f} at best (step {best.step})",
            )
        ]
        if best.step:
            moved = {
                part: {name: weight for name, weight in self._start.items() if name.startswith(part)}
                for part in ("retriever", "generator")
            }
            found += [
                dataclasses.replace(guards.parameters_moved(before, self._best), name=f"{part}: parameters moved")
                for part, before in moved.items()
                if before
            ]
        norms = [entry["retriever_norm"] for entry in self.log]
        found.append(guards.gradients_flowed(norms, [entry["loss"] + entry["contrastive"] for entry in self.log]))
        if not self._models.both_sides:
            stayed = _passages_sum(self._models) == self._passages
            found.append(guards.Guard("passages' encoder stayed", stayed, "so the index stays true"))
        return found
