"""One call from queries to a run, whatever the retriever."""

from dataclasses import dataclass
from typing import Literal, get_args

import faiss
import pyarrow as pa

from ragbench.collection.schema import Collection, Query, corpus_ids, passage_texts
from ragbench.errors import RagbenchError
from ragbench.retrieval.encoder import Encoder, encode, open_encoder
from ragbench.retrieval.index import IndexKind, build_index, search
from ragbench.retrieval.runs import Run, ranked, reciprocal_rank_fusion
from ragbench.retrieval.sparse import WordIndex, find_words, index_words

Method = Literal["dense", "bm25", "fusion"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Retriever:
    """Everything that decides which passages are found.

    Attributes:
        method: ``dense``, ``bm25``, or ``fusion`` of the two by reciprocal rank.
        model, revision, max_tokens: the bi-encoder (see `ragbench.models`) and where it cuts passages.
        index: FAISS index, see `ragbench.retrieval.index`.
        bm25_k1, bm25_b: BM25's parameters.
        depth: passages kept a query.
        device, dtype, seed: where, how precisely, and with which seed for the index.
    """

    method: Method = "dense"
    model: str = "all-MiniLM-L6-v2"
    revision: str = ""
    max_tokens: int = 256
    index: IndexKind = "flat"
    bm25_k1: float = 0.9
    bm25_b: float = 0.4
    depth: int = 100
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Searcher:
    """A retriever with its indices in memory: what is opened once to answer many questions.

    Attributes:
        retriever: what decides which passages are found.
        ids: of the passages, in the order of the corpus.
        encoder, index: of dense retrieval; None where the method does without.
        words: of BM25; None where the method does without.
    """

    retriever: Retriever
    ids: pa.ChunkedArray
    encoder: Encoder | None
    index: faiss.Index | None
    words: WordIndex | None


def open_searcher(collection: Collection, retriever: Retriever, index: faiss.Index | None = None) -> Searcher:
    """Index a collection's passages.

    Args:
        index: the FAISS index of the passages' embeddings, in the order of the corpus; made if it is not given.

    Raises:
        RagbenchError: an unknown method or index, or a model that cannot be had.
    """
    if retriever.method not in METHODS:
        raise RagbenchError(f"retriever_method '{retriever.method}' is unknown; use dense, bm25 or fusion.")
    encoder = words = None
    if retriever.method != "bm25":
        encoder = encoder_of(retriever)
        index = index or build_index(
            encode(encoder, passage_texts(collection), "passage"), retriever.index, retriever.seed
        )
    if retriever.method != "dense":
        words = index_words(collection, retriever.bm25_k1, retriever.bm25_b)
    return Searcher(retriever, corpus_ids(collection), encoder, index, words)


def encoder_of(retriever: Retriever) -> Encoder:
    """Open a retriever's bi-encoder, see `encoder.open_encoder`."""
    return open_encoder(
        retriever.model,
        revision=retriever.revision,
        max_tokens=retriever.max_tokens,
        device=retriever.device,
        dtype=retriever.dtype,
    )


def find(searcher: Searcher, queries: list[Query], *, keep: bool = True) -> Run:
    """Return the `depth` best passages of every query.

    Args:
        keep: whether the questions' embeddings go into the cache; those of users should not.
    """
    depth = searcher.retriever.depth
    runs = []
    if searcher.encoder is not None and searcher.index is not None:
        vectors = encode(searcher.encoder, [query.text for query in queries], "query", keep=keep)
        scores, rows = search(searcher.index, vectors, depth)
        runs.append(
            {
                query.id: ranked(
                    (searcher.ids[int(r)].as_py(), float(s))
                    for r, s in zip(query_rows, query_scores, strict=True)
                    if r >= 0
                )
                for query, query_rows, query_scores in zip(queries, rows, scores, strict=True)
            }
        )
    if searcher.words is not None:
        runs.append(find_words(searcher.words, queries, depth))
    return runs[0] if len(runs) == 1 else reciprocal_rank_fusion(runs, depth)


def retrieve(collection: Collection, queries: list[Query], retriever: Retriever) -> Run:
    """Return the `depth` best passages of every query.

    Raises:
        RagbenchError: an unknown method or index, or a model that cannot be had.
    """
    return find(open_searcher(collection, retriever), queries) if queries else {}
