"""Whether a training run did anything, and nothing bad: checks that every fine-tuning passes through."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

COLLAPSED = 0.9
"""Mean cosine between embeddings of different passages from which on they are taken to have collapsed to one point."""
FEW_DISTINCT = 0.5
"""Share of the base's distinct best passages below which a retriever is taken to return the same for every question."""


@dataclass(frozen=True)
class Guard:
    """One check: its name, whether it holds, and what was measured, in words."""

    name: str
    holds: bool
    measured: str


def parameters_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Guard:
    """Check that training changed the weights: the norm of the change over the norm of the weights, trained ones only.

    Earlier systems have printed a falling loss over weights that no gradient reached.
    """
    change = math.sqrt(sum(float(((after[name] - old).float() ** 2).sum()) for name, old in before.items()))
    norm = math.sqrt(sum(float((old.float() ** 2).sum()) for old in before.values()))
    still = [name for name, old in before.items() if torch.equal(after[name], old)]
    share = change / norm if norm else 0.0
    detail = f"; {len(still)} of {len(before)} tensors did not move" if still else ""
    return Guard("parameters moved", 1e-7 < share < math.inf, f"by {share:.2e} of their norm{detail}")


def gradients_flowed(norms: Sequence[float], losses: Sequence[float]) -> Guard:
    """Check that at every step with something to learn the gradient was not zero.

    Where the loss is 0 there is nothing to learn, as in a last batch that holds the rows of one passage only. That both
    are numbers at all is seen to at every step, by `ragbench.training.callbacks.StopAtNaN`.
    """
    zero = sum(norm == 0 and loss != 0 for norm, loss in zip(norms, losses, strict=True))
    middle = f"median norm {np.median(norms):.3g} over {len(norms)} steps" if norms else "no step was taken"
    return Guard("gradients flowed", bool(norms) and not zero, f"{middle}, {zero} zero")


def not_collapsed(passages: np.ndarray, best_before: Sequence[str], best_after: Sequence[str]) -> Guard:
    """Check that embeddings still differ, and that different questions still find different passages.

    Args:
        passages: unit-length embeddings of different passages after training, of shape (passages, dimensions).
        best_before, best_after: the passage that each dev question ranks first, with the base and the tuned model.
    """
    n = len(passages)
    # The mean over all pairs of different passages, from the norm of their sum.
    cosine = float((np.linalg.norm(passages.sum(axis=0)) ** 2 - n) / (n * (n - 1))) if n > 1 else 0.0
    before, after = len(set(best_before)), len(set(best_after))
    holds = cosine < COLLAPSED and after >= FEW_DISTINCT * before
    return Guard(
        "embeddings did not collapse",
        holds,
        f"mean cosine of different passages {cosine:.2f}; {len(best_after)} questions rank {after} different passages "
        f"first ({before} before)",
    )


def dev_did_not_fall(before: float, after: float, measure: str = "nDCG@10") -> Guard:
    """Check that the best checkpoint is not below the model as it came."""
    return Guard("dev did not fall", after >= before, f"{measure} {before:.3f} before, {after:.3f} after")


def guard_table(checked: Sequence[Guard]) -> pd.DataFrame:
    """Return columns check, holds, measured."""
    rows = [(guard.name, "yes" if guard.holds else "NO", guard.measured) for guard in checked]
    return pd.DataFrame(rows, columns=["check", "holds", "measured"])
