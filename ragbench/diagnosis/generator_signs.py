"""The generator's signs.

They look at how it does with all it needs before it: the answer from the retrieved passages where everything needed was
among them, else the answer from the gold passages. So a failing retriever does not hide them, and is not mistaken for
them.
"""

from dataclasses import replace

import pandas as pd

from ragbench.diagnosis.evidence import HOUSE
from ragbench.diagnosis.intervals import rate_difference, slope
from ragbench.diagnosis.sign import NOTHING, Sign, Thresholds, rate_of

UNCHANGED = 0.7
"""Token F1 from which two answers count as nearly the same."""


def _given(evidence: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The questions that the generator answered with all it needed, as far as `measure` is known for them."""
    return evidence[evidence["stage"].notna()].dropna(subset=[f"{measure}_given"])


def wrong_despite_retrieval(evidence: pd.DataFrame, limits: Thresholds) -> Sign:
    """Measure sign 1: answers wrong or off-topic with everything needed shown."""
    rows = _given(evidence, "correctness")
    wrong = (rows["correctness_given"] < limits.right) | (rows["relevance_given"] < limits.relevant)
    return Sign(
        "wrong_despite_retrieval",
        "generator",
        "Right passages, wrong answers",
        "Share of answers that are wrong or off-topic although every passage that is needed was shown whole.",
        **rate_of(rows, wrong),
        threshold=limits.wrong_despite_retrieval,
    )


def domain_terms(evidence: pd.DataFrame, limits: Thresholds) -> Sign:
    """Measure sign 2: how correctness falls along the ranks of special vocabulary."""
    rows = _given(evidence, "correctness")
    rows = rows[(rows["needs"] == 1) & (rows["refused_given"] != 1)]
    sign = Sign(
        "domain_terms",
        "generator",
        "Domain terms misunderstood",
        "How much correctness falls from the question with the least to that with the most domain-specific vocabulary, "
        "along a straight line through their ranks, with the gold passage shown.",
        **NOTHING,
        threshold=limits.domain_terms,
    )
    if len(rows) < limits.fewest or rows["special"].nunique() < 2:
        return replace(sign, n=len(rows))
    rank = rows["special"].rank()
    rank = (rank - rank.min()) / (rank.max() - rank.min())
    rate, low, high = slope(rank.to_numpy(), 1 - rows["correctness_given"].to_numpy())
    special = rank >= rank.quantile(2 / 3)
    wrong = rows["correctness_given"] < limits.right
    return replace(
        sign,
        rate=min(rate, 1.0),
        low=min(max(low, -1.0), 1.0),
        high=min(high, 1.0),
        n=len(rows),
        query_ids=tuple(rows["query_id"][special & wrong]),
        detail=f"wrong: {wrong[special].mean():.0%} of the third with the most special words, "
        f"{wrong[~special].mean():.0%} of the others",
    )


def hallucination(evidence: pd.DataFrame, limits: Thresholds) -> Sign:
    """Measure sign 3: answers that the passages shown do not support."""
    rows = _given(evidence, "grounding")
    rows = rows[rows["refused_given"] != 1]
    return Sign(
        "hallucination",
        "generator",
        "Invented although the passages were there",
        "Share of answers, refusals aside, that the passages shown do not support although they hold what is needed.",
        **rate_of(rows, rows["grounding_given"] < limits.grounded),
        threshold=limits.hallucination,
    )


def house_style(evidence: pd.DataFrame, limits: Thresholds) -> Sign:
    """Measure sign 4: answers out of the house style, or unlike those to similar questions."""
    rows = evidence[evidence["answered"] & evidence["form"].notna()]
    breaks, differs = rows["form"] != HOUSE, rows["form"] != rows["usual_form"]
    return Sign(
        "format",
        "generator",
        "Form not kept, or not the same for similar questions",
        "Share of answers that are not in the house style, or in another form than most answers to the five most "
        "similar questions.",
        **rate_of(rows, breaks | differs),
        threshold=limits.format,
        detail=f"{breaks.mean():.0%} are not in the house style, {differs.mean():.0%} differ from similar questions"
        if len(rows)
        else "",
    )


def off_topic(evidence: pd.DataFrame, limits: Thresholds) -> Sign:
    """Measure sign 5: answers that do not speak to their question."""
    rows = _given(evidence, "relevance")
    rows = rows[rows["refused_given"] != 1]
    return Sign(
        "off_topic",
        "generator",
        "Off-topic answers from relevant passages",
        "Share of answers, refusals aside, that do not speak to their question although what was shown is relevant.",
        **rate_of(rows, rows["relevance_given"] < limits.relevant),
        threshold=limits.off_topic,
    )


def synthesis(evidence: pd.DataFrame, limits: Thresholds) -> Sign:
    """Measure sign 6: failure on questions that need several passages, beyond that on the others."""
    rows = _given(evidence, "correctness")
    rows = rows[rows["refused_given"] != 1]
    # Who cites part of what is needed has used part of it; who cites nothing is judged by the answer alone.
    failed = (rows["correctness_given"] < limits.right) | rows["cited_given"].between(0, 1, inclusive="neither")
    several = failed[rows["needs"] > 1]
    one = failed[rows["needs"] == 1]
    sign = Sign(
        "synthesis",
        "generator",
        "Several passages not put together",
        "How much more often answers are wrong or incomplete on questions that need several passages than on those "
        "that need one, with all of them shown.",
        **NOTHING,
        threshold=limits.synthesis,
    )
    if min(len(several), len(one)) < limits.fewest:
        return replace(sign, n=min(len(several), len(one)))
    rate, low, high = rate_difference(int(several.sum()), len(several), int(one.sum()), len(one))
    return replace(
        sign,
        rate=rate,
        low=low,
        high=high,
        n=len(rows),
        query_ids=tuple(rows["query_id"][failed & (rows["needs"] > 1)]),
        detail=f"wrong or incomplete: {several.mean():.0%} of {len(several)} that need several, "
        f"{one.mean():.0%} of {len(one)} that need one",
    )


def over_refusal(evidence: pd.DataFrame, limits: Thresholds) -> Sign:
    """Measure refusals where everything needed was shown."""
    rows = _given(evidence, "refused")
    return Sign(
        "over_refusal",
        "generator",
        "Refuses what the passages answer",
        "Share of questions that are refused although every passage that is needed was shown whole.",
        **rate_of(rows, rows["refused_given"] == 1),
        threshold=limits.over_refusal,
    )


def answers_anyway(evidence: pd.DataFrame, limits: Thresholds) -> Sign:
    """Measure answers to questions that the documents do not answer."""
    rows = evidence[~evidence["answerable"] & evidence["answered"]].dropna(subset=["refused_retrieved"])
    return Sign(
        "answers_anyway",
        "generator",
        "Answers what the documents do not tell",
        "Share of unanswerable questions that are not refused.",
        **rate_of(rows, rows["refused_retrieved"] == 0),
        threshold=limits.answers_anyway,
    )


def ignores_passages(evidence: pd.DataFrame, limits: Thresholds) -> Sign:
    """Measure wrong answers that are those given without passages."""
    rows = _given(evidence, "correctness").dropna(subset=["unchanged_given"])
    rows = rows[rows["refused_given"] != 1]
    same = (rows["unchanged_given"] >= UNCHANGED) & (rows["correctness_given"] < limits.right)
    return Sign(
        "ignores_passages",
        "generator",
        "Passages ignored",
        "Share of answers that are wrong and nearly the same as without any passages, although what is needed was "
        "shown.",
        **rate_of(rows, same),
        threshold=limits.ignores_passages,
    )
