"""One call from queries to a run, whatever the retriever."""

from dataclasses import dataclass
from typing import Literal

from ragbench.collection.schema import Collection, Query, corpus_ids, passage_texts
from ragbench.errors import RagbenchError
from ragbench.retrieval.encoder import encode, open_encoder
from ragbench.retrieval.index import IndexKind, build_index, search
from ragbench.retrieval.runs import Run, ranked, reciprocal_rank_fusion
from ragbench.retrieval.sparse import bm25_run


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

    method: Literal["dense", "bm25", "fusion"] = "dense"
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


def retrieve(collection: Collection, queries: list[Query], retriever: Retriever) -> Run:
    """Return the `depth` best passages of every query.

    Raises:
        RagbenchError: an unknown method or index, or a model that cannot be had.
    """
    if not queries:
        return {}
    if retriever.method == "dense":
        return _dense_run(collection, queries, retriever)
    sparse = bm25_run(collection, queries, retriever.depth, retriever.bm25_k1, retriever.bm25_b)
    if retriever.method == "bm25":
        return sparse
    if retriever.method == "fusion":
        return reciprocal_rank_fusion([_dense_run(collection, queries, retriever), sparse], retriever.depth)
    raise RagbenchError(f"retriever_method '{retriever.method}' is unknown; use dense, bm25 or fusion.")


def _dense_run(collection: Collection, queries: list[Query], retriever: Retriever) -> Run:
    encoder = open_encoder(
        retriever.model,
        revision=retriever.revision,
        max_tokens=retriever.max_tokens,
        device=retriever.device,
        dtype=retriever.dtype,
    )
    index = build_index(encode(encoder, passage_texts(collection), "passage"), retriever.index, retriever.seed)
    scores, rows = search(index, encode(encoder, [query.text for query in queries], "query"), retriever.depth)
    ids = corpus_ids(collection)
    return {
        query.id: ranked(
            (ids[int(r)].as_py(), float(s)) for r, s in zip(query_rows, query_scores, strict=True) if r >= 0
        )
        for query, query_rows, query_scores in zip(queries, rows, scores, strict=True)
    }
