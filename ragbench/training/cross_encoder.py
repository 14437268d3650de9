"""A cross-encoder's judgement of questions and passages, kept in the cache: it is the slowest of models here."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ragbench import cache
from ragbench.devices import choose_device
from ragbench.files import sha256_text
from ragbench.models import model_hash, resolve_model

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

CACHE = "cross_scores"
CrossScores = Callable[[list[tuple[str, str]]], np.ndarray]
"""(question, passage) pairs → the probability that the passage answers the question, float64 of shape (pairs,)."""
_CHUNK = 256


def cross_scores(name: str, device: str) -> CrossScores | None:
    """Return a cross-encoder's scoring function, or None for an empty name.

    Scores go into the cache some hundred at a time, so an interrupted preparation goes on where it was.

    Raises:
        RagbenchError: the model or the device cannot be had.
    """
    if not name:
        return None
    folder, where = resolve_model(name), choose_device(device)
    version = model_hash(folder)

    def score(pairs: list[tuple[str, str]]) -> np.ndarray:
        """Return the probability that a passage answers a question, for each pair of them."""
        keys = [sha256_text(version, where.split(":")[0], *pair) for pair in pairs]
        present = cache.contains(CACHE, keys)
        waiting = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in present}
        names = list(waiting)
        bar = tqdm(range(0, len(names), _CHUNK), desc="cross-encoder", unit=f"{_CHUNK} pairs", disable=not names)
        for start in bar:
            part = names[start : start + _CHUNK]
            values = _predict(_open(folder, version, where), [waiting[key] for key in part])
            cache.put(CACHE, {key: value.tobytes() for key, value in zip(part, values, strict=True)})
        known = {key: float(np.frombuffer(value)[0]) for key, value in cache.get(CACHE, keys)}
        return np.array([known[key] for key in keys])

    return score


def _predict(model: "CrossEncoder", pairs: list[tuple[str, str]]) -> np.ndarray:
    import torch

    scores = model.predict(pairs, activation_fn=torch.nn.Sigmoid(), show_progress_bar=False)
    return np.asarray(scores, dtype=np.float64).reshape(-1)


# `version` is the model's hash: a folder whose files were replaced is loaded anew.
@lru_cache(maxsize=1)
def _open(folder: Path, version: str, device: str) -> "CrossEncoder":
    # Importing takes seconds, which a run that finds everything in the cache need not spend.
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device=device, local_files_only=True)
