"""What to do, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ragbench.diagnosis import reasons
from ragbench.diagnosis.attribution import scored_rows
from ragbench.diagnosis.fixes import Fixes
from ragbench.diagnosis.rule import (
    FEWEST_QUESTIONS,
    Choice,
    Criteria,
    Projection,
    Shares,
    choose,
    known_gain,
    project,
    shares_of,
)
from ragbench.diagnosis.sign import Sign

DRAWS = 400
SURE = 0.8


@dataclass(frozen=True)
class Decision:
    """The choice and its grounds.

    Attributes:
        choice, headline: what to do; the headline says it in words.
        firm: whether there were questions enough and the choice was the same for most plausible shares.
        confidence: the probability of the same choice, over these; missing where no answers could be scored.
        questions, needed: how many it rests on, and how many would make it firm (None if it is firm, or if no number
            that was tried would).
        reasons, would_change: sentences.
        projection: None where answers could not be scored.
    """

    choice: Choice
    headline: str
    firm: bool
    confidence: float
    questions: int
    needed: int | None
    reasons: tuple[str, ...]
    would_change: tuple[str, ...]
    projection: Projection | None


def decide(
    evidence: pd.DataFrame,
    faults: Sequence[Sign],
    fixes: Fixes,
    criteria: Criteria,
    *,
    right_from: float = 0.5,
    seed: int = 0,
) -> Decision:
    """Make the choice and say why.

    Args:
        faults: the present signs that no other explains, see `bottleneck.faults`.
    """
    rows = scored_rows(evidence)
    if rows.empty:
        return _on_retrieval_alone(evidence, faults, fixes)
    shares = shares_of(rows, right_from)
    projection = project(shares, known_gain(fixes), criteria.domain)
    choice = choose(projection, criteria)
    confidence = _confidence(shares, len(rows), choice, fixes, criteria, seed)
    firm = len(rows) >= FEWEST_QUESTIONS and confidence >= SURE
    needed = None if firm else _needed(shares, len(rows), choice, fixes, criteria, seed)
    return Decision(
        choice,
        reasons.HEADLINES[choice],
        firm,
        confidence,
        len(rows),
        needed,
        reasons.why(choice, shares, projection, faults, fixes, criteria),
        reasons.what_would_change_it(choice, shares, projection, fixes, criteria, len(rows), firm, needed),
        projection,
    )


def _confidence(shares: Shares, n: int, choice: Choice, fixes: Fixes, criteria: Criteria, seed: int) -> float:
    """Probability of the same choice, if `n` questions came out with these shares.

    The true shares are drawn from their posterior, a Dirichlet distribution with Jeffreys' prior, rather than by
    resampling the questions: thirty right answers of thirty leave it open whether one in twenty would be wrong.
    """
    rng = np.random.default_rng(seed)
    s = shares
    counts = n * np.array([s.right, s.retriever, s.generator, s.either, s.neither])
    gain, error = known_gain(fixes), 0.0
    if gain and fixes.n:
        # The setting's gain is known from some of the same questions: with more of them, it would be better too.
        error = (fixes.high - fixes.low) / 3.92 * min(1.0, (fixes.n / n) ** 0.5 if n > fixes.n else 1.0)
    drawn = [Shares(*map(float, row)) for row in rng.dirichlet(counts + 0.5, DRAWS)]
    made = [choose(project(each, float(rng.normal(gain, error)), criteria.domain), criteria) for each in drawn]
    return made.count(choice) / DRAWS


def _needed(shares: Shares, n: int, choice: Choice, fixes: Fixes, criteria: Criteria, seed: int) -> int | None:
    """The smallest of some numbers of questions that would make the choice firm, if they came out like these."""
    for size in (FEWEST_QUESTIONS, 50, 75, 100, 150, 200, 300, 500, 800, 1200, 2000, 5000):
        if size > n and _confidence(shares, size, choice, fixes, criteria, seed) >= SURE:
            return size
    return None


def _on_retrieval_alone(evidence: pd.DataFrame, faults: Sequence[Sign], fixes: Fixes) -> Decision:
    """Decide where no answers could be scored: on what the retriever shows."""
    asked = evidence[evidence["stage"].notna()]
    nothing = (
        "No answers could be scored: there are none, or no references to compare them with, or the judge failed. This "
        "is an audit of the retrieval alone, and says nothing of the generator."
    )
    if asked.empty:
        silent = (nothing, "No question has gold passages, so the retrieval cannot be judged either.")
        return _unscored("none", "Nothing can be decided: no question has gold passages", silent, len(asked))
    retrieval = [sign for sign in faults if sign.component in ("retriever", "settings")]
    free = fixes.best is not None and fixes.low > 0
    by_settings = free or (bool(retrieval) and all(sign.component == "settings" for sign in retrieval))
    choice: Choice = "settings" if by_settings else "retriever" if retrieval else "none"
    said = [
        nothing,
        "Questions for which everything needed is ranked high enough to be shown: "
        f"{asked['stage'].isin(['cut off', 'shown']).sum()} of {len(asked)}.",
        *map(reasons.sign_sentence, retrieval),
    ]
    if fixes.best is not None and not np.isnan(fixes.low):
        said.append(
            f"The cheap setting that looked best is {fixes.best.name}: on {fixes.n} questions that did not choose it, "
            f"it changes the share for which everything needed is shown by {100 * fixes.gain:+.0f} points "
            f"({100 * fixes.low:+.0f} to {100 * fixes.high:+.0f})."
        )
    return _unscored(choice, f"Retrieval only: {reasons.lowered(choice)}", tuple(said), len(asked))


def _unscored(choice: Choice, headline: str, why: tuple[str, ...], asked: int) -> Decision:
    change = f"Answers and references for at least {FEWEST_QUESTIONS} questions would tell what the generator does."
    few = f"Questions with gold passages: there are {asked}, too few; at least {FEWEST_QUESTIONS} are needed."
    change_it = (few, change) if asked < FEWEST_QUESTIONS else (change,)
    return Decision(choice, headline, False, float("nan"), 0, FEWEST_QUESTIONS, why, change_it, None)
