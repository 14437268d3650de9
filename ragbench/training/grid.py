"""The settings of a training that are tried one after the other; dev chooses among them."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TypeVar

from transformers import TrainingArguments

from ragbench.errors import RagbenchError

_Arguments = TypeVar("_Arguments", bound=TrainingArguments)


def grid(
    arguments: _Arguments, learning_rates: Sequence[float], epochs: Sequence[float], part: str
) -> list[_Arguments]:
    """Return the trainer's arguments with every learning rate and number of epochs.

    Args:
        part: ``retriever`` or ``generator``, whose parameters these are.

    Raises:
        RagbenchError: there is no learning rate or no number of epochs.
    """
    if not learning_rates or not epochs:
        raise RagbenchError(f"{part}_learning_rates and {part}_epochs need at least one value each.")
    return [
        dataclasses.replace(arguments, learning_rate=rate, num_train_epochs=length)
        for rate, length in itertools.product(learning_rates, epochs)
    ]
