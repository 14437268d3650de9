"""BM25 with bm25s (Lù 2024, https://github.com/xhluca/bm25s)."""

from collections.abc import Iterator, Sequence
from itertools import islice

import bm25s
import numpy as np

from ragbench.collection.schema import Collection, Query, corpus_ids, passage_texts
from ragbench.retrieval.runs import Run, ranked


def bm25_run(collection: Collection, queries: list[Query], depth: int, k1: float = 0.9, b: float = 0.4) -> Run:
    """Rank the corpus for each query by BM25 over lower-cased words, without stemming or stop words.

    `k1` and `b` default to the values that Anserini established on MS MARCO and BEIR. Passages that share no word with
    the query are left out.
    """
    ids = corpus_ids(collection)
    run: Run = {}
    every_score = bm25_scores(collection, [query.text for query in queries], k1, b)
    for query, scores in zip(queries, every_score, strict=True):
        # All passages that tie with the last place are compared by id: a partial sort would keep any of them.
        last = max(float(np.partition(scores, -depth)[-depth]), 0.0) if depth < len(scores) else 0.0
        rows = np.flatnonzero((scores >= last) & (scores > 0))
        found = ranked((ids[int(row)].as_py(), float(scores[row])) for row in rows)
        run[query.id] = dict(islice(found.items(), depth))
    return run


def bm25_scores(
    collection: Collection, questions: Sequence[str], k1: float = 0.9, b: float = 0.4
) -> Iterator[np.ndarray]:
    """Yield for each question the BM25 score of every passage, float32 of shape (passages,)."""
    tokenized = _tokenize(passage_texts(collection).to_pylist())
    index = bm25s.BM25(method="lucene", k1=k1, b=b)
    if any(tokenized):
        index.index(tokenized, show_progress=False)
    for words in _tokenize(list(questions)):
        known = [word for word in words if word in index.vocab_dict] if any(tokenized) else []
        yield index.get_scores(known) if known else np.zeros(len(tokenized), dtype=np.float32)


def _tokenize(texts: list[str]) -> list[list[str]]:
    # One-letter words count too: C and R are names.
    return bm25s.tokenize(texts, token_pattern=r"(?u)\b\w+\b", stopwords=None, show_progress=False, return_ids=False)
