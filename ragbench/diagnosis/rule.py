"""The rule by which the audit decides: from where the questions stand to what tuning would give, to a choice."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from ragbench.diagnosis.fixes import Fixes

Choice = Literal["retriever", "generator", "end_to_end", "settings", "none"]
RETRIEVER_REALISED = {"low": 0.3, "medium": 0.4, "high": 0.5}
"""Share of the retriever's headroom that fine-tuning is taken to realise, by how domain-specific the vocabulary is: the
farther the words are from general text, the more a general encoder has to learn."""
GENERATOR_REALISED = 0.5
"""Share of the generator's headroom that fine-tuning is taken to realise."""
FEWEST_QUESTIONS = 30
"""With fewer, no choice is called firm."""
MATTERS = 0.05
"""Tuning both is taken to be more than tuning one only if the second adds at least this share of right answers."""


@dataclass(frozen=True)
class Criteria:
    """What the user needs.

    Attributes:
        accuracy: share of right answers that is needed.
        domain: how domain-specific the vocabulary is: low, medium or high.
        queries_per_month: how much is asked.
        worth: what one more right answer is worth, in the currency of the costs.
        cost: of training and labelling, once; left out of the reckoning where it is not known (NaN).
    """

    accuracy: float = 0.8
    domain: str = "medium"
    queries_per_month: int = 10_000
    worth: float = 0.05
    cost: float = 0.0


@dataclass(frozen=True)
class Shares:
    """Where the scored questions stand, as shares that add up to 1.

    Attributes:
        right: right as it is.
        retriever, generator: wrong, and only a better retriever, or only a better generator, would repair it.
        either, neither: wrong, and either of them would; or it takes both.
    """

    right: float
    retriever: float
    generator: float
    either: float
    neither: float


@dataclass(frozen=True)
class Projection:
    """Shares of right answers, now and as projected.

    Attributes:
        now: as measured.
        settings: with the best cheap setting, by its gain on questions that did not choose it; as `now` without one.
        retriever, generator, end_to_end: after tuning one or both, if the stated shares of the headroom are realised.
    """

    now: float
    settings: float
    retriever: float
    generator: float
    end_to_end: float


def shares_of(rows: pd.DataFrame, right_from: float) -> Shares:
    """Count where scored questions stand (see `attribution.scored_rows`).

    The retriever would repair what is right under the gold passages; a perfect generator is right wherever all that is
    needed is shown whole.
    """
    right = rows["correctness_retrieved"] >= right_from
    by_retriever, by_generator = rows["correctness_oracle"] >= right_from, rows["stage"] == "shown"
    return Shares(
        float(right.mean()),
        float((~right & by_retriever & ~by_generator).mean()),
        float((~right & ~by_retriever & by_generator).mean()),
        float((~right & by_retriever & by_generator).mean()),
        float((~right & ~by_retriever & ~by_generator).mean()),
    )


def project(shares: Shares, fix_gain: float, domain: str) -> Projection:
    """Project the share of right answers for each choice; what takes both counts with both probabilities."""
    r, g = RETRIEVER_REALISED[domain], GENERATOR_REALISED
    s = shares
    return Projection(
        s.right,
        min(1.0, s.right + max(0.0, fix_gain)),
        s.right + r * (s.retriever + s.either),
        s.right + g * (s.generator + s.either),
        s.right + r * s.retriever + g * s.generator + (r + g - r * g) * s.either + r * g * s.neither,
    )


def choose(projection: Projection, criteria: Criteria) -> Choice:
    """Apply the rule.

    Nothing, if it is accurate enough. A cheap setting, if that makes it so, or gains as much as tuning is projected to.
    Else the part whose tuning is projected to give more, or both together where neither alone is projected to be enough
    and the second adds to the first. But a setting, or nothing, where a year's extra right answers are not worth what
    tuning costs.
    """
    p = projection
    if p.now >= criteria.accuracy:
        return "none"
    cheap = p.settings > p.now
    if p.settings >= criteria.accuracy or (cheap and p.settings >= max(p.retriever, p.generator, p.end_to_end)):
        return "settings"
    choice = part_to_train(p, criteria)
    gain, worth = extra(p, choice, criteria)
    if gain <= 0 or worth < criteria.cost:
        return "settings" if cheap else "none"
    return choice


def part_to_train(p: Projection, criteria: Criteria) -> Choice:
    """Return which part, or both, would be trained if anything is."""
    single = max(p.retriever, p.generator)
    if single < criteria.accuracy and p.end_to_end - single >= MATTERS:
        return "end_to_end"
    return "retriever" if p.retriever > p.generator else "generator"


def extra(p: Projection, choice: Choice, criteria: Criteria) -> tuple[float, float]:
    """Return (right answers a year that tuning would add to what is free, what they are worth)."""
    reached = {"retriever": p.retriever, "generator": p.generator, "end_to_end": p.end_to_end}[choice]
    answers = 12 * criteria.queries_per_month * max(0.0, reached - max(p.now, p.settings))
    return answers, answers * criteria.worth


def known_gain(fixes: Fixes) -> float:
    """Return the gain of the best cheap setting; 0 without one, or if its interval is not known."""
    return 0.0 if fixes.best is None or np.isnan([fixes.gain, fixes.low, fixes.high]).any() else fixes.gain
