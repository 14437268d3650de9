"""What a collection is in memory: an Arrow-backed corpus, its queries, and their gold passages split by split."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ragbench.errors import RagbenchError

CORPUS_COLUMNS = pa.schema(
    [("_id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("document_id", pa.string())]
)
UNANSWERABLE = "unanswerable"

Qrels = dict[str, dict[str, int]]
"""query id → passage id → relevance. An unanswerable query maps to an empty dictionary."""


@dataclass(frozen=True)
class Query:
    """One question.

    Attributes:
        id: unique in the collection.
        text: what the user asked.
        answer: the reference answer, or None where nobody wrote one.
        tags: free words; ``unanswerable`` and ``multi`` have a meaning for the metrics.
        needs: groups of passage ids; an answer needs one passage of every group. Empty where nobody said so: then
            each gold passage is taken to be a group of its own for a query tagged ``multi``, else all are one group.
        split: where a query without gold passages belongs; for the others the qrels say it.
        line: the line of its file, for error messages; 0 if it is not from a file.
    """

    id: str
    text: str
    answer: str | None = None
    tags: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    split: str | None = None
    line: int = field(default=0, compare=False)

    @property
    def answerable(self) -> bool:
        """Whether the corpus holds an answer."""
        return UNANSWERABLE not in self.tags


@dataclass(frozen=True)
class Collection:
    """A corpus with its queries and qrels.

    Attributes:
        name: for people.
        corpus: columns ``_id``, ``title``, ``text``, ``document_id``; one row a passage.
        queries: query id → query, all splits together.
        qrels: split → query id → passage id → relevance.
    """

    name: str
    corpus: Dataset
    queries: dict[str, Query]
    qrels: dict[str, Qrels]


@dataclass(frozen=True)
class Passage:
    """One passage as people and models see it."""

    id: str
    title: str
    text: str
    document_id: str

    @property
    def full_text(self) -> str:
        """What is encoded, indexed and shown to the generator: the title, a space, the text."""
        return f"{self.title} {self.text}".strip()


def corpus_ids(collection: Collection) -> pa.ChunkedArray:
    """Return the passage ids as an Arrow array of length ``len(corpus)``."""
    return collection.corpus.data.column("_id")


def passage_texts(collection: Collection, rows: Sequence[int] | np.ndarray | None = None) -> pa.ChunkedArray:
    """Return title + space + text of every passage, or of the given rows, as an Arrow array of strings."""
    table = collection.corpus.data.table
    if rows is not None:
        table = table.take(pa.array(rows, type=pa.int64()))
    joined = pc.binary_join_element_wise(table.column("title"), table.column("text"), " ")
    return pc.utf8_trim_whitespace(joined)


def rows_of(collection: Collection, ids: Sequence[str]) -> np.ndarray:
    """Return the corpus row of each passage id.

    Raises:
        RagbenchError: an id is not in the corpus.
    """
    found = pc.index_in(pa.array(ids, type=pa.string()), value_set=corpus_ids(collection))
    if found.null_count:
        missing = [name for name, row in zip(ids, found.to_pylist(), strict=True) if row is None]
        raise RagbenchError(f"The collection '{collection.name}' has no passage {', '.join(map(repr, missing[:5]))}.")
    return found.to_numpy(zero_copy_only=False).astype(np.int64)


def passages(collection: Collection, ids: Iterable[str]) -> dict[str, Passage]:
    """Return the named passages, by id."""
    wanted = list(dict.fromkeys(ids))
    table = collection.corpus.data.table.take(pa.array(rows_of(collection, wanted), type=pa.int64()))
    return {row["_id"]: Passage(row["_id"], row["title"], row["text"], row["document_id"]) for row in table.to_pylist()}


def split_queries(collection: Collection, split: str) -> list[Query]:
    """Return the queries of one split, in the order of its qrels.

    Raises:
        RagbenchError: the collection has no such split.
    """
    if not collection.qrels:
        raise RagbenchError(
            f"The collection '{collection.name}' has no labelled questions, so nothing can be measured on it. Its "
            "retriever can be tuned on what the corpus itself gives: `ragbench run PARAMS --stages "
            "02_data_prep,03_retriever`."
        )
    if split not in collection.qrels:
        raise RagbenchError(
            f"The collection '{collection.name}' has no split '{split}'; it has: {', '.join(collection.qrels)}."
        )
    return [collection.queries[query_id] for query_id in collection.qrels[split]]


def needed_groups(query: Query, gold: dict[str, int]) -> tuple[frozenset[str], ...]:
    """Return the groups of passages of which an answer needs one each (see `Query.needs`)."""
    if query.needs:
        return tuple(frozenset(group) for group in query.needs)
    relevant = [passage_id for passage_id, score in gold.items() if score > 0]
    if not relevant:
        return ()
    if "multi" in query.tags:
        return tuple(frozenset([passage_id]) for passage_id in relevant)
    return (frozenset(relevant),)


def corpus_from_rows(rows: Iterable[tuple[str, str, str, str]], batch_size: int = 10_000) -> Dataset:
    """Build the Arrow-backed corpus from (id, title, text, document id), never holding more than a batch as objects."""
    batches: list[pa.RecordBatch] = []
    pending: list[tuple[str, str, str, str]] = []

    def flush() -> None:
        columns = [pa.array(column, type=pa.string()) for column in zip(*pending, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(columns, schema=CORPUS_COLUMNS))
        pending.clear()

    for row in rows:
        pending.append(row)
        if len(pending) == batch_size:
            flush()
    if pending:
        flush()
    # Without a fingerprint of our own, datasets would pickle the whole corpus to hash it.
    return Dataset(pa.Table.from_batches(batches, schema=CORPUS_COLUMNS), fingerprint=uuid4().hex)
