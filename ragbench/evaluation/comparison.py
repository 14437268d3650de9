"""Two systems on the same questions: paired differences with intervals and tests, and what became of single questions.

Only questions that both systems were scored on are compared. Every metric is better when it is higher.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.stats import permutation_test

from ragbench.collection.schema import Collection, Passage, Query, passages
from ragbench.errors import RagbenchError
from ragbench.evaluation.cases import first_gold_ranks
from ragbench.evaluation.evaluate import Outcome
from ragbench.evaluation.scores import bootstrap_interval, of_answers
from ragbench.retrieval.retrieve import Retriever


@dataclass(frozen=True)
class Comparison:
    """How a metric differs between two systems on one split.

    Attributes:
        difference: mean of system − baseline over the pairs; None without pairs.
        ci: its 95 % interval; None below two pairs.
        p_value: of the paired randomization test; None below two pairs.
        p_holm: the same after Holm's correction.
        n: questions that both systems were scored on.
    """

    split: str
    metric: str
    baseline: str
    system: str
    difference: float | None
    ci: tuple[float, float] | None
    p_value: float | None
    p_holm: float | None
    n: int


def compare(scores: pd.DataFrame, baseline: str, system: str, *, seed: int = 0) -> list[Comparison]:
    """Compare two systems of a score table (`scores.COLUMNS`) on every split and metric, in the order of the table.

    The interval is the percentile bootstrap of the mean paired difference. Holm's correction is over all that is
    returned; for more systems, join the lists and call `corrected`.

    Raises:
        RagbenchError: the table lacks a system.
        ValueError: a system was scored twice on a question.
    """
    pairs = paired(scores, baseline, system)
    groups = dict(list(pairs.groupby(["split", "metric"])))
    found = []
    for split, metric in dict.fromkeys(zip(scores["split"], scores["metric"], strict=True)):
        if (split, metric) in groups:
            group = groups[split, metric]
            differences = (group["after"] - group["before"]).dropna().to_numpy(dtype=float)
            interval = bootstrap_interval(differences, seed)
            mean = float(differences.mean()) if len(differences) else None
            p_value = randomization_test(differences, seed) if interval else None
            found.append(
                Comparison(split, metric, baseline, system, mean, interval, p_value, p_value, len(differences))
            )
    return corrected(found)


def pairs_of(tuned: Sequence[str]) -> list[tuple[str, str]]:
    """Return the (baseline, system) pairs to compare: all with the base, and joint training with where it began."""
    return [("base", name) for name in tuned] + [
        ("both", name) for name in tuned if name == "end_to_end" and "both" in tuned
    ]


def compare_each(
    scores: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    *,
    retrievers: Mapping[str, Retriever] | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Compare several (baseline, system) pairs, with Holm's correction over all comparisons; see `compare`.

    Args:
        retrievers: of the systems. Of two that have the same, only the answers are compared: what is retrieved cannot
            differ, and would only add to what is corrected for.
    """
    found = []
    for baseline, system in pairs:
        alike = retrievers is not None and retrievers[baseline] == retrievers[system]
        found += compare(of_answers(scores) if alike else scores, baseline, system, seed=seed)
    return corrected(found)


def paired(scores: pd.DataFrame, baseline: str, system: str) -> pd.DataFrame:
    """Return columns split, metric, query_id, before, after of a score table, sorted; missing where not scored.

    Raises:
        RagbenchError: the table lacks a system.
        ValueError: a system was scored twice on a question.
    """
    for name in (baseline, system):
        if name not in set(scores["system"]):
            there = ", ".join(dict.fromkeys(scores["system"]))
            raise RagbenchError(f"There are no scores of the system '{name}'; there are scores of: {there}.")
    both = scores[scores["system"].isin([baseline, system])]
    wide = both.pivot(index=["split", "metric", "query_id"], columns="system", values="value").astype(float)
    return pd.DataFrame({"before": wide[baseline], "after": wide[system]}).reset_index()


def randomization_test(differences: np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired randomization test (Smucker, Allan and Carterette 2007).

    If the systems were the same, each question's difference could as well have the other sign. All assignments of
    signs are tried for up to 13 questions that differ, 9,999 random ones beyond.
    """
    # A difference of 0 is the same under either sign.
    moved = differences[differences != 0]
    if len(moved) < 2:
        return 1.0
    result = permutation_test((moved,), np.mean, permutation_type="samples", vectorized=True, rng=seed, batch=1000)
    return float(result.pvalue)


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with Holm's correction over all of them that have a p-value."""
    tested = [comparison.p_value for comparison in comparisons if comparison.p_value is not None]
    adjusted = iter(holm(tested))
    return [
        replace(comparison, p_holm=None if comparison.p_value is None else next(adjusted)) for comparison in comparisons
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for being several, in their order (Holm 1979): step-down Bonferroni."""
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values)
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def as_records(comparisons: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Return the ``comparisons`` of a metrics.json."""
    return [{**asdict(comparison), "ci": comparison.ci and list(comparison.ci)} for comparison in comparisons]


@dataclass(frozen=True)
class Change:
    """What became of one question; of every pair, the first is before and the second after.

    Attributes:
        values: the metric.
        gold: (gold passage, its rank before, its rank after), None where it was not found.
        first: the best passage, None if nothing was found.
        answers: what was answered, None where nothing was.
    """

    query: Query
    split: str
    values: tuple[float, float]
    gold: tuple[tuple[Passage, int | None, int | None], ...]
    first: tuple[Passage | None, Passage | None]
    answers: tuple[str | None, str | None]


def changed_most(
    collection: Collection, before: Outcome, after: Outcome, metric: str, limit: int = 10
) -> tuple[list[Change], list[Change]]:
    """Return the questions that gained most and those that lost most, at most `limit` each, the largest change first.

    Equal changes stand in the order of split and id. A question that did not change is in neither.
    """
    pairs = paired(pd.concat([before.scores, after.scores]), before.system, after.system)
    pairs = pairs[pairs["metric"] == metric].assign(change=lambda table: table["after"] - table["before"])
    gained = pairs[pairs["change"] > 0].sort_values("change", ascending=False, kind="stable").head(limit)
    lost = pairs[pairs["change"] < 0].sort_values("change", kind="stable").head(limit)
    return (
        [_change(collection, before, after, row) for row in gained.to_dict("records")],
        [_change(collection, before, after, row) for row in lost.to_dict("records")],
    )


def _change(collection: Collection, before: Outcome, after: Outcome, row: dict[Any, Any]) -> Change:
    query_id, split = cast(str, row["query_id"]), cast(str, row["split"])
    gold = [passage_id for passage_id, score in collection.qrels[split][query_id].items() if score > 0]
    orders = [list(outcome.run[query_id]) for outcome in (before, after)]
    known = passages(collection, [*gold, *(order[0] for order in orders if order)])
    ranks = [{passage_id: rank for rank, passage_id in enumerate(order, start=1)} for order in orders]
    old, new = (known[order[0]] if order else None for order in orders)
    said, says = (
        outcome.answers[query_id].answer if query_id in outcome.answers else None for outcome in (before, after)
    )
    return Change(
        collection.queries[query_id],
        split,
        (row["before"], row["after"]),
        tuple((known[name], ranks[0].get(name), ranks[1].get(name)) for name in gold),
        (old, new),
        (said, says),
    )


def paired_ranks(collection: Collection, before: Outcome, after: Outcome) -> pd.DataFrame:
    """Return columns split, query_id, before, after: the rank of the best gold passage, missing where none was found.

    Both outcomes have to be of the same questions.
    """
    first, second = (first_gold_ranks(collection, outcome.run, outcome.questions) for outcome in (before, after))
    joined = first.merge(second, on=["split", "query_id"], validate="one_to_one")
    return joined.rename(columns={"rank_x": "before", "rank_y": "after"})
