"""What the generator's examples were made with: they teach what they show, so it must be what is used later."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ragbench.errors import RagbenchError
from ragbench.files import sha256_text, write_json
from ragbench.generation.generate import Generator
from ragbench.models import model_hash, resolve_model
from ragbench.retrieval.retrieve import Retriever

_RETRIEVER = ("method", "max_tokens", "index", "bm25_k1", "bm25_b")
_GENERATOR = ("contexts", "max_context_tokens", "max_new_tokens", "order", "instruction")


def made_with(retriever: Retriever, generator: Generator) -> dict[str, Any]:
    """Return the settings that decide which passages an example shows, and how.

    The bi-encoder is known by its weights, whatever it is called.
    """
    found, shown = asdict(retriever), asdict(generator)
    encoder = "" if retriever.method == "bm25" else model_hash(resolve_model(retriever.model, retriever.revision))
    return {
        "retriever": {**{name: found[name] for name in _RETRIEVER}, "encoder": encoder},
        "prompt": {**{name: shown[name] for name in _GENERATOR}, "instruction": sha256_text(shown["instruction"])},
    }


def write_made_with(path: Path, retriever: Retriever, generator: Generator) -> None:
    """Write `made_with` as JSON, for `check_made_with`."""
    write_json(path, made_with(retriever, generator))


def check_made_with(path: Path, retriever: Retriever, generator: Generator) -> None:
    """Compare what 02_data_prep made its examples with (`made_with`, as JSON) with what is to be used.

    Raises:
        RagbenchError: they differ.
    """
    made, wanted = json.loads(path.read_text(encoding="utf-8")), made_with(retriever, generator)
    differing = [
        f"{part} {name} ({made[part].get(name)!s:.12} there, {value!s:.12} here)"
        for part, values in wanted.items()
        for name, value in values.items()
        if made[part].get(name) != value
    ]
    if differing:
        raise RagbenchError(
            f"{path.parent.name} made its examples with another setting: {', '.join(differing)}. A generator has to be "
            "trained on what it will be shown: run 02_data_prep again with these parameters."
        )
