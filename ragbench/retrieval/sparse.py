"""BM25 with bm25s (Lù 2024, https://github.com/xhluca/bm25s)."""

import bm25s

from ragbench.collection.schema import Collection, Query, corpus_ids, passage_texts
from ragbench.retrieval.runs import Run, ranked


def bm25_run(collection: Collection, queries: list[Query], depth: int, k1: float = 0.9, b: float = 0.4) -> Run:
    """Rank the corpus for each query by BM25 over lower-cased words, without stemming or stop words.

    `k1` and `b` default to the values that Anserini established on MS MARCO and BEIR. Passages that share no word with
    the query are left out.
    """
    index = bm25s.BM25(method="lucene", k1=k1, b=b)
    texts = passage_texts(collection).to_pylist()
    index.index(bm25s.tokenize(texts, stopwords=None, show_progress=False), show_progress=False)
    tokens = bm25s.tokenize([q.text for q in queries], stopwords=None, show_progress=False, return_ids=False)
    rows, scores = index.retrieve(tokens, k=min(depth, len(texts)), show_progress=False)
    ids = corpus_ids(collection)
    run: Run = {}
    for query, query_rows, query_scores in zip(queries, rows, scores, strict=True):
        found = [(ids[int(row)].as_py(), float(s)) for row, s in zip(query_rows, query_scores, strict=True) if s > 0]
        run[query.id] = ranked(found)
    return run
