"""BM25 with bm25s (Lù 2024, https://github.com/xhluca/bm25s)."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from ragbench.collection.schema import Collection, Query, corpus_ids, passage_texts
from ragbench.retrieval.runs import Run, ranked

# Where JAX is installed, importing bm25s starts it, and JAX takes three quarters of a GPU for itself. What bm25s needs
# it for is not used here, so it is hidden meanwhile, unless somebody has started it before.
sys.modules.setdefault("jax", None)  # type: ignore[arg-type]
import bm25s  # noqa: E402

if sys.modules["jax"] is None:
    del sys.modules["jax"]


@dataclass(frozen=True)
class WordIndex:
    """A BM25 index over the passages of a collection, whose ids are in the order of the corpus."""

    ids: pa.ChunkedArray
    index: bm25s.BM25


def index_words(collection: Collection, k1: float = 0.9, b: float = 0.4) -> WordIndex:
    """Index the corpus for BM25 over lower-cased words, without stemming or stop words.

    `k1` and `b` default to the values that Anserini established on MS MARCO and BEIR.
    """
    tokenized = _tokenize(passage_texts(collection).to_pylist())
    index = bm25s.BM25(method="lucene", k1=k1, b=b)
    if any(tokenized):
        index.index(tokenized, show_progress=False)
    return WordIndex(corpus_ids(collection), index)


def bm25_run(collection: Collection, queries: list[Query], depth: int, k1: float = 0.9, b: float = 0.4) -> Run:
    """Rank the corpus for each query by BM25, see `index_words` and `find_words`."""
    return find_words(index_words(collection, k1, b), queries, depth)


def find_words(words: WordIndex, queries: list[Query], depth: int) -> Run:
    """Return the `depth` best passages of every query. Passages that share no word with it are left out."""
    run: Run = {}
    for query, scores in zip(queries, _scores(words, [query.text for query in queries]), strict=True):
        # All passages that tie with the last place are compared by id: a partial sort would keep any of them.
        last = max(float(np.partition(scores, -depth)[-depth]), 0.0) if depth < len(scores) else 0.0
        rows = np.flatnonzero((scores >= last) & (scores > 0))
        found = ranked((words.ids[int(row)].as_py(), float(scores[row])) for row in rows)
        run[query.id] = dict(islice(found.items(), depth))
    return run


def bm25_scores(
    collection: Collection, questions: Sequence[str], k1: float = 0.9, b: float = 0.4
) -> Iterator[np.ndarray]:
    """Yield for each question the BM25 score of every passage, float32 of shape (passages,)."""
    return _scores(index_words(collection, k1, b), questions)


def _scores(words: WordIndex, questions: Sequence[str]) -> Iterator[np.ndarray]:
    vocabulary = getattr(words.index, "vocab_dict", {})  # there is none where no passage holds a word
    for question in _tokenize(list(questions)):
        known = [word for word in question if word in vocabulary]
        yield words.index.get_scores(known) if known else np.zeros(len(words.ids), dtype=np.float32)


def _tokenize(texts: list[str]) -> list[list[str]]:
    # One-letter words count too: C and R are names.
    return bm25s.tokenize(texts, token_pattern=r"(?u)\b\w+\b", stopwords=None, show_progress=False, return_ids=False)
