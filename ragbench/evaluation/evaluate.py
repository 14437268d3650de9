"""One evaluation call for every system: the same questions, the same metrics, the same fixed judge models."""

from dataclasses import dataclass

import pandas as pd

from ragbench.collection.schema import Collection, Qrels, Query, needed_groups, split_queries
from ragbench.evaluation import answer_metrics as metrics
from ragbench.evaluation.ragas_offline import answer_similarities, context_scores
from ragbench.evaluation.ranking import ranking_scores
from ragbench.evaluation.scores import COLUMNS
from ragbench.generation.answers import Answer
from ragbench.generation.generate import Generator, answer_run
from ragbench.retrieval.encoder import Encoder
from ragbench.retrieval.retrieve import Retriever, retrieve
from ragbench.retrieval.runs import Run

ANSWER_METRICS = (
    "answer_em",
    "answer_f1",
    "answer_similarity",
    "format",
    "citation_precision",
    "citation_recall",
    "refusal",
)
CONTEXT_METRICS = ("context_precision", "context_recall")


@dataclass(frozen=True)
class System:
    """A retriever and a generator with its prompt, under a name (`base`, `retriever`, `generator`, …)."""

    name: str
    retriever: Retriever
    generator: Generator


@dataclass(frozen=True)
class Outcome:
    """What a system did with the questions of one split, and its scores (columns `scores.COLUMNS`)."""

    system: str
    split: str
    run: Run
    answers: list[Answer]
    scores: pd.DataFrame


def evaluate(
    system: System,
    collection: Collection,
    split: str,
    *,
    encoder: Encoder,
    answer_format: str = metrics.HOUSE_STYLE,
    queries: list[Query] | None = None,
) -> Outcome:
    """Retrieve, answer and score one split, or some of its `queries`.

    Args:
        encoder: the fixed encoder of `answer_similarity`.
        answer_format: regular expression of the house style, see `answer_metrics.conforms`.
    """
    asked = split_queries(collection, split) if queries is None else queries
    run = retrieve(collection, asked, system.retriever)
    answers = answer_run(collection, asked, run, system.generator)
    qrels = collection.qrels[split]
    parts = [
        ranking_scores(asked, qrels, run),
        context_table(asked, qrels, answers),
        answer_table(asked, qrels, answers, encoder, answer_format),
    ]
    scores = pd.concat([part for part in parts if len(part)], ignore_index=True)
    scores.insert(0, "split", split)
    scores.insert(0, "system", system.name)
    return Outcome(system.name, split, run, answers, scores[COLUMNS])


def context_table(queries: list[Query], qrels: Qrels, answers: list[Answer]) -> pd.DataFrame:
    """Score the passages that the generator was shown; questions without gold passages have no row."""
    rows: list[tuple[str, str, float | None]] = []
    for query, answer in zip(queries, answers, strict=True):
        scores = context_scores(answer.context_ids, needed_groups(query, qrels[query.id]))
        rows += [(name, query.id, value) for name, value in zip(CONTEXT_METRICS, scores, strict=True) if value is not None]
    return pd.DataFrame(rows, columns=["metric", "query_id", "value"])


def answer_table(
    queries: list[Query], qrels: Qrels, answers: list[Answer], encoder: Encoder, answer_format: str
) -> pd.DataFrame:
    """Score the answers. A failed answer (finish_reason ``error``) has missing values; a question without a reference
    has no rows for the metrics that compare with one."""
    rows: list[tuple[str, str, float | None]] = []
    with_reference = [(q, a) for q, a in zip(queries, answers, strict=True) if q.answer is not None and q.answerable]
    similarities = answer_similarities(
        encoder, [answer.answer for _, answer in with_reference], [query.answer or "" for query, _ in with_reference]
    )
    for (query, answer), similarity in zip(with_reference, similarities, strict=True):
        values = {
            "answer_em": metrics.exact_match(answer.answer, query.answer or ""),
            "answer_f1": metrics.token_f1(answer.answer, query.answer or ""),
            # An empty answer resembles nothing; only a failed one is not scored.
            "answer_similarity": 0.0 if similarity is None else similarity,
        }
        rows += [(name, query.id, _unless_failed(answer, value)) for name, value in values.items()]
    for query, answer in zip(queries, answers, strict=True):
        gold = {passage_id for passage_id, score in qrels[query.id].items() if score > 0}
        values = {
            "format": metrics.conforms(answer.answer, answer_format),
            "refusal": metrics.refusal(answer.answer, query.answerable),
            "citation_precision": metrics.citation_precision(answer.answer, gold),
            "citation_recall": metrics.citation_recall(answer.answer, needed_groups(query, qrels[query.id])),
        }
        rows += [(name, query.id, _unless_failed(answer, value)) for name, value in values.items() if value is not None]
    return pd.DataFrame(rows, columns=["metric", "query_id", "value"])


def _unless_failed(answer: Answer, value: float) -> float | None:
    return None if answer.finish_reason == "error" else value
