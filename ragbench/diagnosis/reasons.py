"""The decision in sentences: why this, and what would change it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ragbench.diagnosis.fixes import Fixes
from ragbench.diagnosis.rule import (
    FEWEST_QUESTIONS,
    GENERATOR_REALISED,
    RETRIEVER_REALISED,
    Choice,
    Criteria,
    Projection,
    Shares,
    choose,
    extra,
    known_gain,
    part_to_train,
    project,
)
from ragbench.diagnosis.sign import Sign

HEADLINES: dict[Choice, str] = {
    "retriever": "Fine-tune the retriever",
    "generator": "Fine-tune the generator",
    "end_to_end": "Tune retriever and generator, then both jointly",
    "settings": "Change the settings; training is not advised yet",
    "none": "Leave it as it is; training is not advised",
}


def why(
    choice: Choice, shares: Shares, p: Projection, faults: Sequence[Sign], fixes: Fixes, criteria: Criteria
) -> tuple[str, ...]:
    """Return the reasons for a choice."""
    said = [f"{p.now:.1%} of the answers are right; {criteria.accuracy:.1%} are needed."]
    said += [sign_sentence(sign) for sign in faults[:3]]
    if p.now < criteria.accuracy:
        said.append(
            f"Projected share of right answers: {p.retriever:.0%} after tuning the retriever, {p.generator:.0%} after "
            f"tuning the generator, {p.end_to_end:.0%} after both, if tuning the retriever repairs "
            f"{RETRIEVER_REALISED[criteria.domain]:.0%} of what it could ({_words(criteria.domain)}) and "
            f"tuning the generator {GENERATOR_REALISED:.0%}."
        )
        said.append(_setting(fixes))
    if p.now < criteria.accuracy and criteria.cost > 0:
        # The part that the rule weighed, also where it found it not to be worth its cost.
        answers, worth = extra(p, part_to_train(p, criteria), criteria)
        said.append(
            f"At {criteria.queries_per_month:,} queries a month, tuning would add {answers:,.0f} right answers a year "
            f"to what is free, worth {worth:,.0f} at {criteria.worth:g} each; tuning both parts and labelling cost "
            f"{criteria.cost:,.0f} once."
        )
    return tuple(said)


def sign_sentence(sign: Sign) -> str:
    """Return a sign with its rate and interval."""
    return f"{sign.title}: {sign.rate:.0%} (95% interval {sign.low:.0%} to {sign.high:.0%})."


def _setting(fixes: Fixes) -> str:
    if fixes.best is None:
        return "No cheap setting did better than the system as it is."
    changes = ", ".join(f"{key}: {value}" for key, value in fixes.best.changes.items())
    name = f"{fixes.best.name} ({changes})"
    if not known_gain(fixes) and np.isnan(fixes.low):
        return f"The cheap setting that looked best is {name}; there were too few questions to confirm it on."
    said = (
        f"The cheap setting that looked best is {name}: on {fixes.n} questions that did not choose it, it changes the "
        f"share of right answers by {100 * fixes.gain:+.0f} points ({100 * fixes.low:+.0f} to {100 * fixes.high:+.0f})."
    )
    if fixes.gain > 0:
        return f"{said} It needs no training, and is what fine-tuning has to beat."
    return f"{said} So it is no improvement to count on."


def what_would_change_it(
    choice: Choice,
    shares: Shares,
    p: Projection,
    fixes: Fixes,
    criteria: Criteria,
    questions: int,
    firm: bool,
    needed: int | None,
) -> tuple[str, ...]:
    """Return under which other circumstances the choice would be another."""
    said: list[str] = []
    if not firm:
        said.append(_more_questions(questions, needed))
    if choice != "none":
        said.append(f"If {p.now:.1%} of right answers were enough, nothing would have to be done.")
    elif criteria.accuracy <= p.now < 1:
        said.append(f"If more than {p.now:.1%} of right answers were needed, something would have to be done.")
    for domain in RETRIEVER_REALISED:
        changed = choose(project(shares, known_gain(fixes), domain), criteria)
        if domain != criteria.domain and changed != choice:
            said.append(f"With {_words(domain)}: {lowered(changed)}.")
    volumes = {max(1, int(criteria.queries_per_month * factor)) for factor in (0.01, 0.1, 10, 100)}
    for volume in sorted(volumes):
        changed = choose(p, replace(criteria, queries_per_month=volume))
        if changed != choice:
            said.append(f"With a monthly volume of {volume:,}: {lowered(changed)}.")
    return tuple(said) or ("Only questions of another kind: these leave nothing to be done.",)


def _words(domain: str) -> str:
    return {"low": "general vocabulary", "medium": "fairly special vocabulary", "high": "very special vocabulary"}[
        domain
    ]


def _more_questions(questions: int, needed: int | None) -> str:
    few = "The alternatives lie close together"
    if questions < FEWEST_QUESTIONS:
        few = "1 question is too few" if questions == 1 else f"{questions} questions are too few"
    if needed is None:
        return f"{few}; even thousands that come out like these would leave the choice open."
    return f"{few}: about {needed:,} questions would settle it, if they come out like these."


def lowered(choice: Choice) -> str:
    """Return a choice's headline to go on a sentence with."""
    return HEADLINES[choice][0].lower() + HEADLINES[choice][1:]
