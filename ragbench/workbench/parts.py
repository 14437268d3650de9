"""Which tuned models a system is made of, and the stages that left them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragbench.errors import RagbenchError
from ragbench.workbench.stages import Stage, read_meta

RETRIEVER, GENERATOR = ("03_retriever", "model"), ("04_generator", "model")
SYSTEMS: dict[str, tuple[tuple[str, str] | None, tuple[str, str] | None]] = {
    "base": (None, None),
    "retriever": (RETRIEVER, None),
    "generator": (None, GENERATOR),
    "both": (RETRIEVER, GENERATOR),
    "end_to_end": (("05_end_to_end", "retriever"), ("05_end_to_end", "generator")),
}
"""System → stage and folder of its retriever and of its generator; None where it is the one of the params file."""
_STARTS = {"end_to_end": "both"}
"""A system that goes on from another has the parts of that one where it has none of its own."""


@dataclass(frozen=True)
class Parts:
    """The folders of a system's tuned models; None where it uses the one of the params file.

    Attributes:
        decision: whether training kept anything tuned, and why, see `ragbench.training.decision`.
        seconds: spent training, all that the system needs.
    """

    retriever: Path | None
    generator: Path | None
    decision: dict[str, Any]
    seconds: float


def read_parts(stage: Stage, systems: Sequence[str], generator_backend: str) -> dict[str, Parts]:
    """Return the parts of each named system, ``base`` first; every file of a model becomes an input of the stage.

    A model that its training did not keep is none. Systems with a tuned generator are left out where the generator is
    not trained here (`generator_backend` other than ``local``).

    Raises:
        RagbenchError: a name is no system, or a stage that is needed is not complete.
    """
    unknown = sorted(set(systems) - set(SYSTEMS))
    if unknown:
        raise RagbenchError(f"evaluation_systems: there is no system '{unknown[0]}'; there are: {', '.join(SYSTEMS)}.")
    if not set(systems) - {"base"}:
        raise RagbenchError(
            "evaluation_systems names no tuned system; add some of: " + ", ".join(list(SYSTEMS)[1:]) + "."
        )
    named = ["base", *(name for name in SYSTEMS if name in systems and name != "base")]
    return {name: _parts(stage, name) for name in named if SYSTEMS[name][1] is None or generator_backend == "local"}


def _parts(stage: Stage, system: str) -> Parts:
    decisions = {made: _decision(stage, made[0]) for made in SYSTEMS[system] if made}
    retriever, generator = (
        _folder(stage, made) if made and decisions[made]["kept"] == "tuned" else None for made in SYSTEMS[system]
    )
    by_stage = {made[0]: decision for made, decision in decisions.items()}
    own = Parts(
        retriever,
        generator,
        {
            "kept": "tuned" if retriever or generator else "base",
            "reason": " ".join(dict.fromkeys(decision["reason"] for decision in by_stage.values())),
        },
        sum(decision["seconds"] for decision in by_stage.values()),
    )
    if system not in _STARTS:
        return own
    start = _parts(stage, _STARTS[system])
    return Parts(
        own.retriever or start.retriever,
        own.generator or start.generator,
        own.decision,
        own.seconds + start.seconds,
    )


def _folder(stage: Stage, made: tuple[str, str]) -> Path | None:
    """Return the folder of a model, or None where the stage, which trains several, left this one as it was."""
    stage_name, folder = made
    there = any(name.startswith(f"{folder}/") for name in read_meta(stage.run / stage_name)["outputs"])
    return stage.read_folder(stage_name, folder) if there else None


def _decision(stage: Stage, name: str) -> dict[str, Any]:
    return json.loads(stage.read(name, "decision.json").read_text(encoding="utf-8"))
