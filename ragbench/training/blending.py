"""Averaging a tuned model's weights with the base model's.

A point on the way from the base weights to the tuned ones often keeps nearly all of the gain, and forgets less of the
rest of the world (WiSE-FT, Wortsman et al. 2022; for embeddings LM-Cocktail, Xiao et al. 2023). It costs no training,
only a look at dev for each point.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor


def blend(
    model: SentenceTransformer,
    base: Mapping[str, Tensor],
    shares: Sequence[float],
    measure: Callable[[SentenceTransformer], float],
    whole: float,
) -> tuple[float, float]:
    """Set the model's weights to the best blend of its own and the base model's; return its share and measurement.

    Args:
        base: the base model's weights, by name.
        shares: of the tuned weights, each from 0 to 1; the tuned model itself (1) is always among them.
        measure: larger is better. Of equals the smaller share wins: it is nearer to the base model.
        whole: the measurement of the tuned model as it is.
    """
    tuned = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    found = {1.0: whole}
    for share in shares:
        if share not in found:
            _set(model, base, tuned, share)
            found[share] = measure(model)
    best = min(found, key=lambda share: (-found[share], share))
    _set(model, base, tuned, best)
    return best, found[best]


def _set(model: SentenceTransformer, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> None:
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if weight.is_floating_point():
                weight.copy_(torch.lerp(base[name].to(weight), tuned[name], share))
