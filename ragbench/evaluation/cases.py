"""Single questions with all that happened to them, for people to read; and how far the gold passages came."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ragbench.collection.schema import Collection, Passage, Query, needed_groups, passages
from ragbench.evaluation.answer_metrics import citations
from ragbench.evaluation.evaluate import Outcome
from ragbench.generation.answers import Answer
from ragbench.retrieval.runs import Run

FUNNEL = ("found", "shown", "shown whole", "cited")


@dataclass(frozen=True)
class Case:
    """One question: what was asked, expected and answered, and which passages were shown.

    Attributes:
        scores: metric → value.
        shown: (passage, is gold, was cut) in the order of the prompt.
        missed: (gold passage, its rank or None) for the gold passages that were not shown.
    """

    query: Query
    split: str
    answer: Answer
    scores: dict[str, float]
    shown: tuple[tuple[Passage, bool, bool], ...]
    missed: tuple[tuple[Passage, int | None], ...]


def worst_cases(collection: Collection, outcome: Outcome, metric: str, limit: int = 20) -> list[Case]:
    """Return the questions with the lowest value of a metric, the worst first (equal ones by id)."""
    wide = outcome.scores.pivot(index=["split", "query_id"], columns="metric", values="value")
    if metric not in wide:
        return []
    ordered = wide.dropna(subset=[metric]).reset_index().sort_values([metric, "split", "query_id"]).head(limit)
    return [
        _case(
            collection,
            outcome,
            row["split"],
            row["query_id"],
            {str(name): float(value) for name, value in row.drop(["split", "query_id"]).dropna().items()},
        )
        for _, row in ordered.iterrows()
    ]


def named_cases(collection: Collection, outcome: Outcome, query_ids: Sequence[str]) -> list[Case]:
    """Return the named questions, those left out that were not answered."""
    splits = {query.id: split for split, queries in outcome.questions.items() for query in queries}
    return [_case(collection, outcome, splits[name], name, {}) for name in query_ids if name in outcome.answers]


def _case(collection: Collection, outcome: Outcome, split: str, query_id: str, scores: dict[str, float]) -> Case:
    gold = [passage_id for passage_id, score in collection.qrels[split][query_id].items() if score > 0]
    answer = outcome.answers[query_id]
    known = passages(collection, [*gold, *answer.context_ids])
    ranks = {passage_id: rank for rank, passage_id in enumerate(outcome.run[query_id], start=1)}
    shown = tuple((known[name], name in gold, name in answer.cut_ids) for name in answer.context_ids)
    missed = tuple((known[name], ranks.get(name)) for name in gold if name not in answer.context_ids)
    return Case(collection.queries[query_id], split, answer, scores, shown, missed)


def first_gold_ranks(collection: Collection, outcome_run: Run, questions: dict[str, list[Query]]) -> pd.DataFrame:
    """Return columns split, query_id, rank: the rank of the best gold passage, missing where none was found."""
    rows: list[tuple[str, str, int | None]] = []
    for split, queries in questions.items():
        for query in queries:
            gold = {passage_id for passage_id, score in collection.qrels[split][query.id].items() if score > 0}
            if gold:
                found = [rank for rank, name in enumerate(outcome_run[query.id], start=1) if name in gold]
                rows.append((split, query.id, found[0] if found else None))
    return pd.DataFrame(rows, columns=["split", "query_id", "rank"]).astype({"rank": "Int64"})


def funnel(collection: Collection, outcome: Outcome) -> pd.DataFrame:
    """Tell how far everything that an answer needs came on its way to the answer.

    Returns columns step, questions, n: of the `n` answered questions that have gold passages, in how many *all* needed
    groups were found by the retriever, shown to the generator, shown uncut, and cited in the answer. Each step is
    counted among the questions that passed the one before.
    """
    passed = dict.fromkeys(FUNNEL, 0)
    total = 0
    for split, queries in outcome.questions.items():
        for query in queries:
            groups = needed_groups(query, collection.qrels[split][query.id])
            if not groups or query.id not in outcome.answers:
                continue
            total += 1
            answer = outcome.answers[query.id]
            reached = [
                set(outcome.run[query.id]),
                set(answer.context_ids),
                set(answer.context_ids) - set(answer.cut_ids),
                set(citations(answer.answer)),
            ]
            for step, ids in zip(FUNNEL, reached, strict=True):
                if not all(group & ids for group in groups):
                    break
                passed[step] += 1
    return pd.DataFrame([(step, count, total) for step, count in passed.items()], columns=["step", "questions", "n"])
