"""How likely a generator finds expected answers after their prompts, with gradients where they are wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ragbench.training.answer_rows import IGNORED

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1536, 32_768
"""Padded tokens of one forward pass."""


@dataclass(frozen=True)
class Row:
    """The token ids of a prompt and of the answer that is expected after it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def answer_log_likelihoods(network: Any, rows: Sequence[Row]) -> Tensor:
    """Return the summed log-likelihood (float32, natural log) of each row's answer given its prompt, in their order.

    All rows pass in few padded batches of like length. Gradients flow unless they are switched off.

    Args:
        network: a causal language model of Transformers, in the mode that it is to be used in.
    """
    device = next(network.parameters()).device
    budget = CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS
    order = sorted(range(len(rows)), key=lambda place: -(len(rows[place].prompt) + len(rows[place].answer)))
    found: list[Tensor] = []
    start = 0
    while start < len(order):
        longest = len(rows[order[start]].prompt) + len(rows[order[start]].answer)
        part = [rows[place] for place in order[start : start + max(1, budget // longest)]]
        found.append(_forward(network, part, longest, device))
        start += len(part)
    return torch.cat(found)[torch.argsort(torch.tensor(order)).to(device)]


def _forward(network: Any, rows: Sequence[Row], width: int, device: torch.device) -> Tensor:
    ids = torch.tensor([[*row.prompt, *row.answer] + [0] * (width - _length(row)) for row in rows], device=device)
    labels = torch.full_like(ids, IGNORED)
    for number, row in enumerate(rows):
        labels[number, len(row.prompt) : _length(row)] = torch.tensor(row.answer)
    return label_log_likelihoods(network, ids, labels)


def label_log_likelihoods(network: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the summed log-likelihood (float32, natural log) of each row's labelled tokens.

    Logits are computed only where some row has a label. The padding has to be on the right: as no token attends to
    what comes after it, it needs no mask.

    Args:
        ids, labels: of shape (rows, tokens); a label is `IGNORED`, or the token that stands there.
    """
    wanted = labels[:, 1:]  # the logits before a token are those that predict it
    places = (wanted != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = network(input_ids=ids, logits_to_keep=places, use_cache=False).logits
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), wanted[:, places].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view(len(ids), -1).sum(dim=1)


def _length(row: Row) -> int:
    return len(row.prompt) + len(row.answer)
