"""The retriever's signs, and that of the settings between it and the generator."""

from dataclasses import replace

import pandas as pd

from ragbench.diagnosis.intervals import rate_difference
from ragbench.diagnosis.sign import NOTHING, Sign, Thresholds, rate_of

CLEAR_WORDS = 5
"""A question of fewer words is a keyword query, and may be missed for want of a question."""


def missed(evidence: pd.DataFrame, limits: Thresholds) -> Sign:
    """Measure the retriever's counterpart: clear questions whose passages are missed, and the vocabulary gap."""
    rows = evidence[evidence["stage"].notna() & (evidence["words"] >= CLEAR_WORDS)]
    missed = rows["stage"].isin(["not found", "not shown"])
    if missed.nunique() == 2:
        found_gap, missed_gap = rows["gap"][~missed].mean(), rows["gap"][missed].mean()
        detail = f"their passages lack {missed_gap:.0%} of the question's words, where they are found {found_gap:.0%}"
    else:
        detail = f"passages lack {rows['gap'].mean():.0%} of the question's words" if len(rows) else ""
    return Sign(
        "missed",
        "retriever",
        "Clear questions whose passages are missed",
        f"Share of questions of {CLEAR_WORDS} words or more for which a needed passage is not among those shown.",
        **rate_of(rows, missed),
        threshold=limits.missed,
        detail=detail,
    )


def cut_off(evidence: pd.DataFrame, limits: Thresholds) -> Sign:
    """Measure needed passages lost to the length limit."""
    rows = evidence[evidence["answered"] & evidence["stage"].isin(["cut off", "shown"])]
    return Sign(
        "cut_off",
        "settings",
        "Needed passages cut by the length limit",
        "Share of questions whose needed passages were retrieved high enough, but shortened or left out for length.",
        **rate_of(rows, rows["stage"] == "cut off"),
        threshold=limits.cut_off,
    )


def blind_topic(evidence: pd.DataFrame, topics: pd.DataFrame, limits: Thresholds) -> Sign:
    """The topic that is missed most, against the rest; the interval allows for its having been picked out."""
    sign = Sign(
        "blind_topic",
        "retriever",
        "A topic that the retriever does not see",
        "How much more often the passages of the worst topic are missed than those of all others.",
        **NOTHING,
        threshold=limits.blind_topic,
    )
    rows = evidence[evidence["stage"].notna()]
    missed = rows["stage"].isin(["not found", "not shown"])
    members = {
        (grain, name): (column == name).to_numpy()
        for grain, column in topics.loc[rows.index].items()
        for name in column.unique()
    }
    found = []
    for (_, name), inside in members.items():
        a, b = missed[inside], missed[~inside]
        if len(a) >= 3 and len(b) >= limits.fewest:
            confidence = 1 - 0.05 / len(members)
            found.append((rate_difference(int(a.sum()), len(a), int(b.sum()), len(b), confidence), name, inside))
    if not found:
        return sign
    (rate, low, high), name, inside = max(found, key=lambda entry: entry[0][1])
    return replace(
        sign,
        rate=rate,
        low=low,
        high=high,
        n=len(rows),
        query_ids=tuple(rows["query_id"][inside & missed]),
        detail=f"the topic is: {name} ({inside.sum()} questions, {missed[inside].mean():.0%} missed)",
    )
