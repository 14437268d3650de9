"""Ranking metrics of a run, from ir-measures over pytrec_eval (MacAvaney et al. 2022, https://ir-measur.es)."""

import ir_measures
import pandas as pd

from ragbench.collection.schema import Query
from ragbench.retrieval.runs import Run

RANKING_METRICS: dict[str, ir_measures.Measure] = {
    "ndcg@10": ir_measures.nDCG @ 10,
    "recall@5": ir_measures.R @ 5,
    "recall@100": ir_measures.R @ 100,
    "mrr@10": ir_measures.RR @ 10,
    "precision@5": ir_measures.P @ 5,
}


def ranking_scores(queries: list[Query], qrels: dict[str, dict[str, int]], run: Run) -> pd.DataFrame:
    """Return columns metric, query_id, value: one row for every query that has gold passages and every metric.

    A query that the run lacks scores 0; unanswerable queries have nothing to rank and are left out.
    """
    judged = {query.id: qrels[query.id] for query in queries if any(score > 0 for score in qrels[query.id].values())}
    if not judged:
        return pd.DataFrame(columns=["metric", "query_id", "value"])
    # Positions rather than scores: trec_eval would order ties, and scores equal in float32, in a way of its own.
    found = {
        query_id: {name: -float(position) for position, name in enumerate(run.get(query_id, {}))} for query_id in judged
    }
    names = {measure: name for name, measure in RANKING_METRICS.items()}
    values = {
        (names[row.measure], row.query_id): row.value
        for row in ir_measures.iter_calc(list(names), _as_frame(judged, "relevance"), _as_frame(found, "score"))
    }
    rows = [(name, query_id, values.get((name, query_id), 0.0)) for name in RANKING_METRICS for query_id in judged]
    return pd.DataFrame(rows, columns=["metric", "query_id", "value"])


def _as_frame(table: dict[str, dict[str, float]] | dict[str, dict[str, int]], value: str) -> pd.DataFrame:
    rows = [(query_id, doc_id, score) for query_id, scores in table.items() for doc_id, score in scores.items()]
    return pd.DataFrame(rows, columns=["query_id", "doc_id", value])
