"""What a warning sign is: a rate over the questions it can be seen on, with an interval and a threshold."""

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from ragbench.diagnosis.intervals import rate_interval

State = Literal["present", "possible", "absent", "unknown"]


@dataclass(frozen=True)
class Thresholds:
    """From where on something counts. The rates are those above which a sign is present.

    Attributes:
        right, grounded, relevant: an answer counts as right, supported or to the point from this estimate on.
        fewest: questions on which a sign must be seen at least, for a statement about it.
    """

    right: float = 0.5
    grounded: float = 0.5
    relevant: float = 0.8
    fewest: int = 10
    wrong_despite_retrieval: float = 0.3
    domain_terms: float = 0.0
    hallucination: float = 0.2
    format: float = 0.15
    off_topic: float = 0.15
    synthesis: float = 0.05
    missed: float = 0.3
    cut_off: float = 0.05
    blind_topic: float = 0.2
    over_refusal: float = 0.1
    answers_anyway: float = 0.3
    ignores_passages: float = 0.2


@dataclass(frozen=True)
class Sign:
    """One warning sign as measured.

    Attributes:
        name, component: which sign, and of what: ``retriever``, ``settings`` or ``generator``.
        title, definition: for people; the definition is one sentence.
        rate, low, high: a share of `n` questions, or for a contrast the difference between two groups, with its 95 %
            interval; missing (NaN) where there is nothing to see it on.
        threshold: the sign is present if the whole interval lies above it.
        query_ids: the questions that show it.
        detail: what else was measured about it.
    """

    name: str
    component: str
    title: str
    definition: str
    rate: float
    low: float
    high: float
    n: int
    threshold: float
    query_ids: tuple[str, ...] = ()
    detail: str = ""
    state: State = "unknown"


NOTHING: dict[str, Any] = {"rate": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
"""The fields of a sign for which there is nothing to see it on."""


def rate_of(rows: pd.DataFrame, events: pd.Series) -> dict[str, Any]:
    """Return the fields of a sign that counts `events` among `rows`."""
    if rows.empty:
        return NOTHING
    happened = events.to_numpy(dtype=bool)
    low, high = rate_interval(int(happened.sum()), len(rows))
    return {
        "rate": float(happened.mean()),
        "low": low,
        "high": high,
        "n": len(rows),
        "query_ids": tuple(rows["query_id"][happened]),
    }
