"""Candidates for hard negatives: what retrievers rank high for a question, and what of it is known to answer it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pyarrow.compute as pc

from ragbench.collection.schema import Collection, Query, passage_texts, rows_of
from ragbench.errors import RagbenchError
from ragbench.retrieval.encoder import Encoder, encode
from ragbench.retrieval.index import IndexKind, build_index, search
from ragbench.retrieval.sparse import bm25_run
from ragbench.training.pairs import Pair

ABSENT = -1
"""Stands for no passage in arrays of corpus rows."""


@dataclass(frozen=True)
class Mining:
    """How negatives are chosen.

    Attributes:
        per_positive: how many for each pair.
        sources: ``dense``, ``bm25`` or both; candidates of both are taken in turn, the highest ranked first.
        first, last: the window of ranks that candidates come from, counted from 1.
        share: a candidate that scores above this share of the positive's score is taken for an unlabelled answer.
        draw: ``top`` takes the highest ranked that are left, ``random`` draws among them.
        bm25_k1, bm25_b: BM25's parameters.
        index: FAISS index, see `ragbench.retrieval.index`.
        seed: of the drawing and the index.
    """

    per_positive: int = 4
    sources: tuple[str, ...] = ("dense", "bm25")
    first: int = 1
    last: int = 50
    share: float = 0.95
    draw: str = "top"
    bm25_k1: float = 0.9
    bm25_b: float = 0.4
    index: IndexKind = "flat"
    seed: int = 0


def check(mining: Mining) -> None:
    """Check the settings.

    Raises:
        RagbenchError: one is unknown or contradictory; the message names the parameter.
    """
    if mining.draw not in ("top", "random"):
        raise RagbenchError(f"prep_negatives_draw '{mining.draw}' is unknown; use top or random.")
    unknown = sorted(set(mining.sources) - {"dense", "bm25"})
    if unknown or not mining.sources:
        raise RagbenchError(f"prep_negatives_sources {list(mining.sources)} must be of dense and bm25.")
    if mining.per_positive < 0:
        raise RagbenchError(f"prep_negatives is {mining.per_positive}; it must be 0 or more.")
    if not 0 < mining.share <= 1:
        raise RagbenchError(f"prep_negatives_share is {mining.share}; it must be above 0 and at most 1, e.g. 0.95.")
    if not 1 <= mining.first <= mining.last:
        raise RagbenchError(
            f"prep_negatives_ranks [{mining.first}, {mining.last}]: the first must be 1 or more, the last not below it."
        )
    if mining.index not in get_args(IndexKind):
        raise RagbenchError(f"retriever_index '{mining.index}' is unknown; use {', '.join(get_args(IndexKind))}.")


def candidate_rows(
    collection: Collection, pairs: Sequence[Pair], encoder: Encoder, corpus: np.ndarray, mining: Mining
) -> np.ndarray:
    """Return corpus rows of shape (pairs, window · sources): rank by rank, the sources in turn; -1 for none."""
    questions = list(dict.fromkeys(pair.question for pair in pairs))
    place = {question: number for number, question in enumerate(questions)}
    width = mining.last - mining.first + 1
    ranked: list[np.ndarray] = []
    for source in mining.sources:
        if source == "dense":
            index = build_index(corpus, mining.index, mining.seed)
            rows = search(index, encode(encoder, questions, "query"), mining.last)[1][:, mining.first - 1 :]
        else:
            rows = _bm25_rows(collection, questions, mining)
        ranked.append(np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=ABSENT))
    in_turn = np.stack(ranked, axis=2).reshape(len(questions), -1)
    for row in in_turn:
        _, first = np.unique(row, return_index=True)
        again = np.ones(len(row), dtype=bool)
        again[first] = False
        row[again] = ABSENT
    return in_turn[[place[pair.question] for pair in pairs]]


def _bm25_rows(collection: Collection, questions: Sequence[str], mining: Mining) -> np.ndarray:
    asked = [Query(str(number), question) for number, question in enumerate(questions)]
    run = bm25_run(collection, asked, mining.last, mining.bm25_k1, mining.bm25_b)
    rows = np.full((len(questions), mining.last), ABSENT, dtype=np.int64)
    counts = np.array([len(run[query.id]) for query in asked])
    found = rows_of(collection, [name for query in asked for name in run[query.id]])
    rows[np.arange(mining.last) < counts[:, None]] = found
    return rows[:, mining.first - 1 :]


def text_groups(collection: Collection) -> np.ndarray:
    """Return a number for each corpus row: equal numbers are texts with the same words."""
    words = pc.replace_substring_regex(pc.utf8_lower(passage_texts(collection)), r"\s+", " ")
    return pc.dictionary_encode(words).combine_chunks().indices.to_numpy()


def known_rows(collection: Collection, pairs: Sequence[Pair]) -> dict[str, set[int]]:
    """Return for each question the corpus rows of its positives, over all pairs and the collection's own labels."""
    positives: dict[str, set[str]] = {}
    for pair in pairs:
        positives.setdefault(pair.question, set()).add(pair.passage_id)
    for qrels in collection.qrels.values():
        for query_id, gold in qrels.items():
            question = collection.queries[query_id].text
            if question in positives:
                positives[question] |= {passage_id for passage_id, score in gold.items() if score > 0}
    names = sorted(set().union(*positives.values()))
    row_of = dict(zip(names, rows_of(collection, names).tolist(), strict=True))
    return {question: {row_of[name] for name in found} for question, found in positives.items()}
