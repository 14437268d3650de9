"""From a run's evaluation to a bundle: the system as it was measured, with the numbers that speak for it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ragbench.collection.load import fingerprint, load_collection
from ragbench.collection.schema import Collection, passage_texts
from ragbench.deployment import canaries
from ragbench.deployment.bundle import EVALUATION, INDEX, Contents, passages_of, system_of, verify
from ragbench.errors import RagbenchError
from ragbench.evaluation.evaluate import System
from ragbench.generation.generate import Generator
from ragbench.retrieval.encoder import remember
from ragbench.retrieval.index import read_index, vectors_of
from ragbench.retrieval.retrieve import Retriever, encoder_of
from ragbench.workbench.parts import SYSTEMS, Parts, read_parts
from ragbench.workbench.project import project_root
from ragbench.workbench.stages import Stage, check_outputs, library_versions

STAGE = "06_evaluation"
_SHARED = {"device": "device", "dtype": "dtype"}
_RETRIEVER = {
    **{name: f"retriever_{name}" for name in ("method", "model", "revision", "max_tokens", "index", "depth")},
    **{name: name for name in ("bm25_k1", "bm25_b", "seed")},
    **_SHARED,
}
_GENERATOR = {
    **{
        name: f"generator_{name}"
        for name in (
            "backend", "model", "revision", "endpoint", "contexts", "max_context_tokens", "max_new_tokens",
            "concurrency",
        )
    },
    "order": "generator_prompt",
    **_SHARED,
}  # fmt: skip
"""Fields of `Retriever` and `Generator` → the parameters that the notebooks make them of."""


def contents_of(run: Path, system: str = "") -> Contents:
    """Return what a bundle of one of a run's systems is packed from.

    Args:
        run: the folder of the experiment; its evaluation has to be complete.
        system: its name; the one that the run's verdict says to use if left out.

    Raises:
        RagbenchError: the evaluation has not run or its files have changed, it has no such system, or the collection is
            another one by now.
    """
    run = run.resolve()
    meta = check_outputs(run / STAGE)
    parameters = meta["parameters"]
    metrics, verdict = (
        json.loads((run / STAGE / name).read_text(encoding="utf-8")) for name in ("metrics.json", "verdict.json")
    )
    name = system or verdict["use"]
    if name not in metrics["systems"]:
        raise RagbenchError(f"{run} has no system '{name}'; it has: {', '.join(metrics['systems'])}.")
    root = project_root()
    collection = load_collection(parameters["collection"], root)
    found = fingerprint(collection)
    if found != meta["inputs"]["collection"]:
        raise RagbenchError(
            f"The collection '{parameters['collection']}' has changed since {run / STAGE} measured on it. Run it again."
        )
    parts = _parts(Stage("bundle", root, run, parameters), name, parameters["generator_backend"])
    answering = _system(name, parts, parameters)
    return Contents(
        answering,
        parts.retriever is not None,
        parts.generator is not None,
        collection,
        found,
        {
            "run": run.name,
            "split": metrics["systems"][name],
            "against_base": [
                each for each in metrics["comparisons"] if (each["baseline"], each["system"]) == ("base", name)
            ],
            "verdict": verdict,
        },
        canaries.choose(collection, answering, parameters["seed"]),
        str(run),
        library_versions(),
    )


def with_passages(folder: Path, collection: Collection) -> Contents:
    """Return what the next version of a bundle is packed from when only its passages have changed.

    What the index has is not encoded again.

    Args:
        folder: of the bundle; it is verified.
        collection: with the passages as they are now.

    Raises:
        RagbenchError: the bundle is damaged.
    """
    manifest = verify(folder)
    system = system_of(folder, manifest)
    if manifest.built_with:
        before = passages_of(folder)
        vectors = vectors_of(read_index(folder / INDEX), np.arange(manifest.passages))
        remember(encoder_of(system.retriever), passage_texts(before), vectors, "passage")
    evaluation = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
    return Contents(
        system,
        manifest.retriever is not None and manifest.retriever.inside,
        manifest.generator.inside,
        collection,
        fingerprint(collection),
        {**evaluation, "passages": f"changed since it was measured, as version {folder.name}"},
        canaries.choose(collection, system, system.retriever.seed),
        f"{folder.parent.name}/{folder.name}, passages changed",
        library_versions(),
    )


def _parts(stage: Stage, system: str, backend: str) -> Parts:
    if SYSTEMS.get(system) == (None, None):
        return Parts(None, None, {}, 0.0)
    return read_parts(stage, [system], backend)[system]


def _system(name: str, parts: Parts, known: dict[str, Any]) -> System:
    retriever = Retriever(**{field: known[parameter] for field, parameter in _RETRIEVER.items()})
    generator = Generator(**{field: known[parameter] for field, parameter in _GENERATOR.items()})
    if parts.retriever:
        retriever = replace(retriever, model=str(parts.retriever), revision="")
    if parts.generator:
        generator = replace(generator, model=str(parts.generator), revision="")
    return System(name, retriever, generator)
