"""The fitted grounding scores: logistic regressions over named features, and how well they agree with people.

``benchmarks/fit_grounding.py`` writes ``grounding.json``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

Kind = Literal["light", "full"]
PATH = Path(__file__).with_name("grounding.json")


@dataclass(frozen=True)
class Agreement:
    """How well a score agrees with people on answers that were not used to fit it.

    Attributes:
        data: which labelled answers.
        auroc: the probability that a supported answer scores higher than one that is not.
        balanced_accuracy: mean of the shares recognised among those supported and those not, at the threshold.
        n, supported: answers, and how many of them are supported.
    """

    data: str
    auroc: float
    balanced_accuracy: float
    n: int
    supported: int


@dataclass(frozen=True)
class Term:
    """One feature's part in the logit: ``weight * (value - mean) / scale``."""

    mean: float
    scale: float
    weight: float


@dataclass(frozen=True)
class Model:
    """A fitted score; from `threshold` on, an answer counts as supported."""

    intercept: float
    terms: dict[str, Term]
    threshold: float
    agreement: tuple[Agreement, ...]


@cache
def fitted(kind: Kind) -> Model:
    """Return the fitted score: ``light`` without a language model, or ``full``."""
    record = json.loads(PATH.read_text(encoding="utf-8"))[kind]
    return Model(
        record["intercept"],
        {name: Term(**term) for name, term in record["terms"].items()},
        record["threshold"],
        tuple(Agreement(**each) for each in record["agreement"]),
    )


def logits(model: Model, features: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Return the log-odds of being supported, one per mapping of features."""
    return np.array(
        [
            model.intercept + sum(t.weight * (each[name] - t.mean) / t.scale for name, t in model.terms.items())
            for each in features
        ]
    )


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the logistic function of log-odds."""
    return 1 / (1 + np.exp(-logits))
