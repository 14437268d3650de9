"""One evaluation call for every system: the same questions, the same metrics, the same fixed judge models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from ragbench.collection.schema import Collection, Query, needed_groups, split_queries
from ragbench.evaluation import answer_metrics as metrics
from ragbench.evaluation.ragas_offline import answer_similarities, context_scores
from ragbench.evaluation.ranking import ranking_scores
from ragbench.evaluation.scores import COLUMNS
from ragbench.generation.answers import Answer
from ragbench.generation.generate import Generator, answer_run
from ragbench.retrieval.encoder import Encoder
from ragbench.retrieval.retrieve import Retriever, retrieve
from ragbench.retrieval.runs import Run

Questions = dict[str, list[Query]]
"""split → the questions that are asked of it."""
_ROW = ["metric", "query_id", "value"]


@dataclass(frozen=True)
class System:
    """A retriever and a generator with its prompt, under a name (`base`, `retriever`, `generator`, …)."""

    name: str
    retriever: Retriever
    generator: Generator


@dataclass(frozen=True)
class Outcome:
    """What a system did with some questions, and its scores (columns `scores.COLUMNS`)."""

    system: str
    questions: Questions
    run: Run
    answers: dict[str, Answer]
    scores: pd.DataFrame


def choose_questions(collection: Collection, splits: Sequence[str], limit: int = 0, seed: int = 0) -> Questions:
    """Return the questions of some splits; with a `limit` above 0, that many drawn at random, evenly from the splits.

    A split with fewer questions than its share gives all it has, and the others make up for it.

    Raises:
        RagbenchError: the collection lacks a split.
    """
    questions = {split: split_queries(collection, split) for split in splits}
    if 0 < limit < sum(map(len, questions.values())):
        rng = np.random.default_rng(seed)
        for place, split in enumerate(sorted(questions, key=lambda name: len(questions[name]))):
            share = limit // (len(questions) - place)
            drawn = rng.choice(len(questions[split]), size=min(share, len(questions[split])), replace=False)
            questions[split] = [questions[split][position] for position in sorted(drawn)]
            limit -= len(drawn)
    return {split: queries for split, queries in questions.items() if queries}


def retrieval_scores(
    name: str, collection: Collection, questions: Questions, retriever: Retriever
) -> tuple[Run, pd.DataFrame]:
    """Retrieve for all questions and score the run; return both."""
    run = retrieve(collection, [query for queries in questions.values() for query in queries], retriever)
    tables = {split: ranking_scores(queries, collection.qrels[split], run) for split, queries in questions.items()}
    return run, _labelled(name, tables)


def retrieve_and_score(name: str, collection: Collection, questions: Questions, retriever: Retriever) -> Outcome:
    """Retrieve and score without answering: the outcome of a system of which only the retriever is looked at."""
    run, scores = retrieval_scores(name, collection, questions, retriever)
    return Outcome(name, questions, run, {}, scores)


def retrieval_of_others(collection: Collection, outcome: Outcome, retriever: Retriever) -> pd.DataFrame:
    """Score the retrieval of the questions of the outcome's splits that it did not ask: retrieving costs little."""
    others = {
        split: [query for query in split_queries(collection, split) if query not in asked]
        for split, asked in outcome.questions.items()
    }
    return retrieval_scores(outcome.system, collection, others, retriever)[1]


def compare_retrieval(collection: Collection, questions: Questions, retriever: Retriever) -> pd.DataFrame:
    """Score the same questions under dense retrieval, BM25 and their fusion, all else as in `retriever`."""
    methods: tuple[Literal["dense", "bm25", "fusion"], ...] = ("dense", "bm25", "fusion")
    return pd.concat(
        [retrieval_scores(m, collection, questions, replace(retriever, method=m))[1] for m in methods],
        ignore_index=True,
    )


def evaluate(
    system: System,
    collection: Collection,
    questions: Questions,
    *,
    encoder: Encoder,
    answer_format: str = metrics.HOUSE_STYLE,
) -> Outcome:
    """Retrieve, answer and score.

    Args:
        encoder: the fixed encoder of `answer_similarity`.
        answer_format: regular expression of the house style, see `answer_metrics.conforms`.
    """
    run, ranking = retrieval_scores(system.name, collection, questions, system.retriever)
    asked = [query for queries in questions.values() for query in queries]
    answers = {answer.query_id: answer for answer in answer_run(collection, asked, run, system.generator)}
    tables = {
        split: pd.concat(
            [
                context_table(collection, split, queries, answers),
                answer_table(collection, split, queries, answers, encoder, answer_format),
            ],
            ignore_index=True,
        )
        for split, queries in questions.items()
    }
    scores = pd.concat([ranking, _labelled(system.name, tables)], ignore_index=True)
    return Outcome(system.name, questions, run, answers, scores)


def _labelled(system: str, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    parts = [table.assign(system=system, split=split)[COLUMNS] for split, table in tables.items() if len(table)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def context_table(collection: Collection, split: str, queries: list[Query], answers: dict[str, Answer]) -> pd.DataFrame:
    """Score the passages that the generator was shown; questions without gold passages or answer have no row."""
    rows: list[tuple[str, str, float]] = []
    for query in queries:
        if query.id not in answers:
            continue
        groups = needed_groups(query, collection.qrels[split][query.id])
        precision, recall = context_scores(answers[query.id].context_ids, groups)
        if precision is not None and recall is not None:
            rows += [("context_precision", query.id, precision), ("context_recall", query.id, recall)]
    return pd.DataFrame(rows, columns=_ROW)


def answer_table(
    collection: Collection,
    split: str,
    queries: list[Query],
    answers: dict[str, Answer],
    encoder: Encoder,
    answer_format: str,
) -> pd.DataFrame:
    """Score the answers.

    A failed answer (finish_reason ``error``) has missing values, a question that was not answered has no rows. A
    question that has no reference, or cannot be answered, has no rows for the metrics that compare with a reference.
    """
    rows: list[tuple[str, str, float | None]] = []
    queries = [query for query in queries if query.id in answers]
    similarity = _similarities(queries, answers, encoder)
    for query in queries:
        answer = answers[query.id]
        gold = {passage_id for passage_id, score in collection.qrels[split][query.id].items() if score > 0}
        values: dict[str, float | None] = {}
        if query.id in similarity:
            values["answer_em"] = metrics.exact_match(answer.answer, query.answer or "")
            values["answer_f1"] = metrics.token_f1(answer.answer, query.answer or "")
            values["answer_similarity"] = similarity[query.id]
        values["format"] = metrics.conforms(answer.answer, answer_format)
        values["refusal"] = metrics.refusal(answer.answer, query.answerable)
        values["citation_precision"] = metrics.citation_precision(answer.answer, gold)
        values["citation_recall"] = metrics.citation_recall(
            answer.answer, needed_groups(query, collection.qrels[split][query.id])
        )
        failed = answer.finish_reason == "error"
        rows += [(name, query.id, None if failed else value) for name, value in values.items() if value is not None]
    return pd.DataFrame(rows, columns=_ROW)


def _similarities(queries: list[Query], answers: dict[str, Answer], encoder: Encoder) -> dict[str, float]:
    compared = [query for query in queries if query.answer is not None and query.answerable]
    values = answer_similarities(
        encoder, [answers[query.id].answer for query in compared], [query.answer or "" for query in compared]
    )
    # An answer without words resembles nothing.
    return {query.id: value or 0.0 for query, value in zip(compared, values, strict=True)}
