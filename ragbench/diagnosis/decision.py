"""What to do: train the retriever, the generator or both, change settings, or leave it.

A rule that can be read, applied to what was measured and to three criteria of the user. How sure the choice is comes
from making it again on resampled questions; how many questions would settle it, from resampling more of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from ragbench.diagnosis.attribution import reached, scored_rows
from ragbench.diagnosis.fixes import Fixes
from ragbench.diagnosis.sign import Sign

Choice = Literal["retriever", "generator", "end_to_end", "settings", "none"]
RETRIEVER_REALISED = {"low": 0.3, "medium": 0.4, "high": 0.5}
"""Share of the retriever's headroom that fine-tuning is taken to realise, by how domain-specific the vocabulary is: the
farther the words are from general text, the more a general encoder has to learn."""
GENERATOR_REALISED = 0.5
"""Share of the generator's headroom that fine-tuning is taken to realise."""
MATTERS = 0.1
"""A part matters if repairing it alone, or with the other, would make at least this share of the answers right."""
RESAMPLES = 400
FEWEST_QUESTIONS = 30
SURE = 0.8


@dataclass(frozen=True)
class Criteria:
    """What the user needs.

    Attributes:
        accuracy: share of right answers that is needed.
        domain: how domain-specific the vocabulary is: low, medium or high.
        queries_per_month: how much is asked.
        worth: what one more right answer is worth, in the currency of the costs.
        cost: of training and labelling, once; a missing one is left out of the reckoning.
    """

    accuracy: float = 0.8
    domain: str = "medium"
    queries_per_month: int = 10_000
    worth: float = 0.05
    cost: float = 0.0


@dataclass(frozen=True)
class Projection:
    """Shares of right answers, now and as projected.

    Attributes:
        now: as measured.
        settings: with the best cheap setting, as measured on questions that did not choose it; as `now` without one.
        retriever, generator, end_to_end: after tuning one or both, if the stated shares of the headroom are realised.
    """

    now: float
    settings: float
    retriever: float
    generator: float
    end_to_end: float


@dataclass(frozen=True)
class Decision:
    """The choice and its grounds.

    Attributes:
        choice, headline: what to do; the headline says it in words.
        firm: whether there were questions enough and the choice was the same on most resamples.
        confidence: share of the resamples with the same choice; missing where nothing could be resampled.
        questions, needed: how many it rests on, and how many would make it firm (None if already firm, or if no number
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


def project(rows: pd.DataFrame, right_from: float, fix_gain: float, domain: str) -> Projection:
    """Project the share of right answers for each choice from scored questions (see `attribution.scored_rows`)."""
    would = {name: float(values.mean()) for name, values in reached(rows, right_from).items()}
    return _projected(would["now"], would["retriever"], would["generator"], fix_gain, domain)


def _projected(now: float, retriever: float, generator: float, fix_gain: float, domain: str) -> Projection:
    r, g = RETRIEVER_REALISED[domain], GENERATOR_REALISED
    from_retriever = now + r * max(0.0, retriever - now)
    from_generator = now + g * max(0.0, generator - now)
    # Both perfect is right everywhere. What neither alone can reach counts by both shares, since both must succeed.
    alone = r * max(0.0, retriever - now) + g * max(0.0, generator - now)
    together = max(0.0, (1 - now) - max(0.0, retriever - now) - max(0.0, generator - now))
    both = min(1.0, now + alone + r * g * together)
    return Projection(now, min(1.0, now + max(0.0, fix_gain)), from_retriever, from_generator, both)


def choose(projection: Projection, criteria: Criteria) -> Choice:
    """Apply the rule.

    Nothing, if it is accurate enough. A cheap setting, if that makes it so, or gains as much as tuning one part is
    projected to. Else the part whose tuning is projected to give more, or both together where both matter and neither
    alone is projected to be enough. But a setting, or nothing, where a year's extra right answers are not worth what
    tuning costs.
    """
    p = projection
    if p.now >= criteria.accuracy:
        return "none"
    single = max(p.retriever, p.generator)
    cheap = p.settings > p.now
    if p.settings >= criteria.accuracy or (cheap and p.settings >= single and p.settings >= p.end_to_end):
        return "settings"
    both_matter = min(p.end_to_end - p.retriever, p.end_to_end - p.generator) >= MATTERS / 2
    choice: Choice = (
        "end_to_end"
        if single < criteria.accuracy and both_matter
        else ("retriever" if p.retriever > p.generator else "generator")
    )
    reached_by_it = p.end_to_end if choice == "end_to_end" else single
    gain = reached_by_it - max(p.now, p.settings)
    if 12 * criteria.queries_per_month * gain * criteria.worth < criteria.cost or gain <= 0:
        return "settings" if cheap else "none"
    return choice


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
    gain = 0.0 if np.isnan(fixes.gain) else fixes.gain
    projection = project(rows, right_from, gain, criteria.domain)
    choice = choose(projection, criteria)
    confidence = _confidence(rows, choice, fixes, criteria, right_from, len(rows), seed)
    firm = len(rows) >= FEWEST_QUESTIONS and confidence >= SURE
    needed = None if firm else _needed(rows, choice, fixes, criteria, right_from, seed)
    return Decision(
        choice,
        _HEADLINES[choice],
        firm,
        confidence,
        len(rows),
        needed,
        _reasons(choice, projection, faults, fixes, criteria),
        _would_change(choice, projection, criteria, firm, needed),
        projection,
    )


def _confidence(
    rows: pd.DataFrame, choice: Choice, fixes: Fixes, criteria: Criteria, right_from: float, size: int, seed: int
) -> float:
    """Share of resamples of `size` questions, with replacement, on which the same choice is made."""
    rng = np.random.default_rng(seed)
    would = {name: values.to_numpy(dtype=float) for name, values in reached(rows, right_from).items()}
    gain = 0.0 if np.isnan(fixes.gain) else fixes.gain
    error = 0.0 if np.isnan(fixes.high - fixes.low) else (fixes.high - fixes.low) / 3.92
    error *= (len(rows) / size) ** 0.5
    made = Counter()  # type: Counter[Choice]
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(rows), size=size)
        now, retriever, generator = (float(would[name][drawn].mean()) for name in ("now", "retriever", "generator"))
        made[choose(_projected(now, retriever, generator, rng.normal(gain, error), criteria.domain), criteria)] += 1
    return made[choice] / RESAMPLES


def _needed(
    rows: pd.DataFrame, choice: Choice, fixes: Fixes, criteria: Criteria, right_from: float, seed: int
) -> int | None:
    """The smallest of some numbers of questions, drawn from those there are, that would make the choice firm."""
    for size in (FEWEST_QUESTIONS, 50, 75, 100, 150, 200, 300, 500, 800, 1200, 2000):
        if size > len(rows) and _confidence(rows, choice, fixes, criteria, right_from, size, seed) >= SURE:
            return size
    return None


_HEADLINES: dict[Choice, str] = {
    "retriever": "Fine-tune the retriever",
    "generator": "Fine-tune the generator",
    "end_to_end": "Tune retriever and generator, then both jointly",
    "settings": "Change the settings; training is not advised yet",
    "none": "Leave it as it is; training is not advised",
}


def _reasons(
    choice: Choice, p: Projection, faults: Sequence[Sign], fixes: Fixes, criteria: Criteria
) -> tuple[str, ...]:
    said = [f"{p.now:.0%} of the answers are right; {criteria.accuracy:.0%} are needed."]
    said += [f"{sign.title}: {sign.rate:.0%} ({sign.low:.0%} to {sign.high:.0%})." for sign in faults[:3]]
    said.append(
        f"Projected share of right answers: {p.retriever:.0%} after tuning the retriever, {p.generator:.0%} after "
        f"tuning the generator, {p.end_to_end:.0%} after both, if tuning realises "
        f"{RETRIEVER_REALISED[criteria.domain]:.0%} of the retriever's headroom ({criteria.domain} domain vocabulary) "
        f"and {GENERATOR_REALISED:.0%} of the generator's."
    )
    if fixes.best is None:
        said.append("No cheap setting did better than the system as it is.")
    else:
        changes = ", ".join(f"{key}: {value}" for key, value in fixes.best.changes.items())
        said.append(
            f"The best cheap setting is {fixes.best.name} ({changes}): it changes correctness by {fixes.gain:+.2f} "
            f"({fixes.low:+.2f} to {fixes.high:+.2f}) on {fixes.n} questions that did not choose it. "
            "It costs nothing, and is what fine-tuning has to beat."
        )
    if criteria.cost:
        best = max(p.retriever, p.generator, p.end_to_end)
        extra = 12 * criteria.queries_per_month * max(0.0, best - max(p.now, p.settings))
        said.append(
            f"At {criteria.queries_per_month:,} queries a month, that is up to {extra:,.0f} more right answers a year, "
            f"worth {extra * criteria.worth:,.0f}, for a cost of {criteria.cost:,.0f} once."
        )
    return tuple(said)


def _would_change(choice: Choice, p: Projection, criteria: Criteria, firm: bool, needed: int | None) -> tuple[str, ...]:
    said: list[str] = []
    if not firm:
        said.append(
            f"More questions: about {needed} would make the choice firm, if they come out like these."
            if needed
            else "More questions than this audit can foresee: the alternatives lie close together."
        )
    if choice != "none":
        said.append(f"If {p.now:.0%} of right answers were enough, nothing would have to be done.")
    for domain in RETRIEVER_REALISED:
        other = _projected(p.now, *_headroom(p, criteria), p.settings - p.now, domain)
        changed = choose(other, criteria)
        if domain != criteria.domain and changed != choice:
            said.append(f"With {domain} domain vocabulary: {_HEADLINES[changed].lower()}.")
    for volume in (criteria.queries_per_month // 10, criteria.queries_per_month * 10):
        changed = choose(p, Criteria(criteria.accuracy, criteria.domain, volume, criteria.worth, criteria.cost))
        if changed != choice:
            said.append(f"At {volume:,} queries a month: {_HEADLINES[changed].lower()}.")
    return tuple(said)


def _headroom(p: Projection, criteria: Criteria) -> tuple[float, float]:
    """Turn a projection back into what a perfect retriever and a perfect generator would reach."""
    return (
        p.now + (p.retriever - p.now) / RETRIEVER_REALISED[criteria.domain],
        p.now + (p.generator - p.now) / GENERATOR_REALISED,
    )


def _on_retrieval_alone(evidence: pd.DataFrame, faults: Sequence[Sign], fixes: Fixes) -> Decision:
    asked = evidence[evidence["stage"].notna()]
    share = asked["stage"].isin(["cut off", "shown"]).mean() if len(asked) else float("nan")
    retrieval = [sign for sign in faults if sign.component in ("retriever", "settings")]
    choice: Choice = "settings" if fixes.best and fixes.gain > 0 else "retriever" if retrieval else "none"
    reasons = [
        "No answers could be scored, because there are none or no references to compare them with: this is an audit of "
        "the retrieval alone, and says nothing of the generator.",
        f"For {share:.0%} of {len(asked)} questions everything needed is ranked high enough to be shown.",
        *(f"{sign.title}: {sign.rate:.0%} ({sign.low:.0%} to {sign.high:.0%})." for sign in retrieval),
    ]
    if fixes.best:
        reasons.append(
            f"The best cheap setting is {fixes.best.name}: everything needed is shown for {fixes.gain:+.0%} of "
            f"{fixes.n} questions that did not choose it ({fixes.low:+.0%} to {fixes.high:+.0%})."
        )
    return Decision(
        choice,
        "Retrieval only: " + _HEADLINES[choice][0].lower() + _HEADLINES[choice][1:],
        False,
        float("nan"),
        0,
        FEWEST_QUESTIONS,
        tuple(reasons),
        (f"Answers and references for at least {FEWEST_QUESTIONS} questions would tell what the generator does.",),
        None,
    )
