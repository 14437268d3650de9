"""Collections in files: the BEIR layout, read in a stream and checked line by line, and written back.

Layout (Thakur et al. 2021, https://github.com/beir-cellar/beir), with answers and tags added::

    corpus.jsonl    {"_id", "title", "text", "metadata": {"document_id"}}
    queries.jsonl   {"_id", "text", "answer", "metadata": {"tags", "needs", "split"}}
    qrels/SPLIT.tsv query-id <tab> corpus-id <tab> score, after a header line

`metadata.split` places a query that has no qrels row: one tagged ``unanswerable``.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ragbench.collection.schema import UNANSWERABLE, Collection, Qrels, Query, corpus_from_rows, corpus_ids
from ragbench.errors import RagbenchError
from ragbench.files import atomic_path

QRELS_HEADER = ["query-id", "corpus-id", "score"]
_SCORE = re.compile(r"[+-]?[0-9]{1,9}")
SPLIT_ORDER = ("train", "dev", "test", "ood")


def read_collection(folder: Path) -> Collection:
    """Read and check a collection folder; one with nothing but a corpus has no questions and no splits.

    Raises:
        RagbenchError: something is missing or broken; the message names file and line.
    """
    questions = [name for name in ("queries.jsonl", "qrels") if (folder / name).exists()]
    for name in ("corpus.jsonl", *(("queries.jsonl", "qrels") if questions else ())):
        if not (folder / name).exists():
            raise RagbenchError(
                f"{folder / name} is missing. A collection is a folder with corpus.jsonl and, unless nothing is "
                "labelled, queries.jsonl and qrels/SPLIT.tsv (docs/collections.md)."
            )
    corpus = corpus_from_rows(_corpus_rows(folder / "corpus.jsonl"))
    if not len(corpus):
        raise RagbenchError(f"{folder / 'corpus.jsonl'} holds no passage.")
    queries = _read_queries(folder / "queries.jsonl") if questions else {}
    collection = Collection(folder.name, corpus, queries, _read_qrels(folder, queries) if questions else {})
    _check_corpus_ids(collection, folder)
    _check_gold(collection, folder)
    return collection


def write_collection(collection: Collection, folder: Path) -> None:
    """Write a collection in the BEIR layout; each file appears whole or not at all."""
    with atomic_path(folder / "corpus.jsonl") as path, path.open("w", encoding="utf-8") as file:
        for row in collection.corpus:
            metadata = {"document_id": row.pop("document_id")}
            file.write(json.dumps({**row, "metadata": metadata}, ensure_ascii=False) + "\n")
    if not collection.queries:
        return
    split_of = {query_id: split for split, qrels in collection.qrels.items() for query_id in qrels}
    with atomic_path(folder / "queries.jsonl") as path, path.open("w", encoding="utf-8") as file:
        for query in collection.queries.values():
            file.write(json.dumps(_query_record(query, split_of.get(query.id)), ensure_ascii=False) + "\n")
    for split, qrels in collection.qrels.items():
        lines = ["\t".join(QRELS_HEADER)]
        lines += [
            f"{query_id}\t{passage_id}\t{score}"
            for query_id, gold in qrels.items()
            for passage_id, score in gold.items()
        ]
        with atomic_path(folder / "qrels" / f"{split}.tsv") as path:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _query_record(query: Query, split: str | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"tags": list(query.tags)}
    if query.needs:
        metadata["needs"] = [list(group) for group in query.needs]
    if split and not query.answerable:
        metadata["split"] = split
    return {"_id": query.id, "text": query.text, "answer": query.answer, "metadata": metadata}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise RagbenchError(
                    f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line). "
                    "Save the file as UTF-8, e.g. with `iconv -t UTF-8`."
                ) from error
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise RagbenchError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}).") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
            raise RagbenchError(f"{path}, line {number}: JSON that cannot be read ({error}).") from error
        if not isinstance(record, dict):
            raise RagbenchError(f"{path}, line {number}: expected a JSON object, found {type(record).__name__}.")
        yield number, record


def _string(record: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = record.get(key)
    if value is None:
        value = default
    if value is None:
        raise RagbenchError(f"{where}: the field '{key}' is missing.")
    if not isinstance(value, str):
        raise RagbenchError(f"{where}: the field '{key}' must be a string, found {value!r}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RagbenchError(
            f"{where}: the field '{key}' holds half of a surrogate pair, which is no character."
        ) from error
    return value


def _identifier(record: dict[str, Any], where: str) -> str:
    value = _string(record, "_id", where)
    if not value or any(character.isspace() for character in value):
        raise RagbenchError(f"{where}: the id {value!r} must be a non-empty string without white space.")
    return value


def _metadata(record: dict[str, Any], where: str) -> dict[str, Any]:
    value = record.get("metadata") or {}
    if not isinstance(value, dict):
        raise RagbenchError(f"{where}: 'metadata' must be an object, found {value!r}.")
    return value


def _corpus_rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    for number, record in _records(path):
        where = f"{path}, line {number}"
        passage_id = _identifier(record, where)
        document = _string(_metadata(record, where), "document_id", where, passage_id)
        yield passage_id, _string(record, "title", where, ""), _string(record, "text", where), document


def _read_queries(path: Path) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    for number, record in _records(path):
        where = f"{path}, line {number}"
        query_id = _identifier(record, where)
        if query_id in queries:
            raise RagbenchError(f"{where}: the id {query_id!r} stands already on line {queries[query_id].line}.")
        queries[query_id] = _query(query_id, record, where, number)
    return queries


def _query(query_id: str, record: dict[str, Any], where: str, line: int) -> Query:
    metadata = _metadata(record, where)
    tags = _string_list(metadata.get("tags") or [], "metadata.tags", where)
    groups = metadata.get("needs") or []
    if not isinstance(groups, list):
        raise RagbenchError(f"{where}: 'metadata.needs' must be a list of lists of passage ids, found {groups!r}.")
    needs = tuple(_string_list(group, "metadata.needs", where) for group in groups)
    if not all(needs):
        raise RagbenchError(f"{where}: 'metadata.needs' has an empty group, which no passage can satisfy.")
    answer = None if record.get("answer") is None else _string(record, "answer", where)
    split = None if metadata.get("split") is None else _string(metadata, "split", where)
    text = _string(record, "text", where)
    if not text.strip():
        raise RagbenchError(f"{where}: the query {query_id!r} has an empty text.")
    if UNANSWERABLE in tags and split is None:
        raise RagbenchError(f"{where}: the query {query_id!r} is tagged {UNANSWERABLE} and has no 'metadata.split'.")
    return Query(query_id, text, answer, tags, needs, split, line)


def _string_list(value: Any, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RagbenchError(f"{where}: '{key}' must be a list of strings, found {value!r}.")
    return tuple(_string({key: item}, key, where) for item in value)


def _read_qrels(folder: Path, queries: dict[str, Query]) -> dict[str, Qrels]:
    paths = sorted((folder / "qrels").glob("*.tsv"), key=lambda path: (_rank(path.stem), path.stem))
    if not paths:
        raise RagbenchError(f"{folder / 'qrels'} holds no SPLIT.tsv file.")
    qrels = {path.stem: _read_qrels_file(path, queries) for path in paths}
    for query in queries.values():
        if UNANSWERABLE in query.tags and query.split is not None:
            if query.split not in qrels:
                raise RagbenchError(
                    f"{folder / 'queries.jsonl'}, line {query.line}: the split '{query.split}' has no file in qrels/."
                )
            qrels[query.split].setdefault(query.id, {})
    for split, judged in qrels.items():
        if not judged:
            raise RagbenchError(
                f"{folder / 'qrels' / split}.tsv: the split has no queries. Fill the file or delete it."
            )
    return qrels


def _rank(split: str) -> int:
    return SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER)


def _read_qrels_file(path: Path, queries: dict[str, Query]) -> Qrels:
    qrels: Qrels = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        fields = line.rstrip("\r\n").split("\t")
        if number == 1:
            if fields != QRELS_HEADER:
                raise RagbenchError(f"{where}: expected the header {QRELS_HEADER} with tabs between, found {line!r}.")
            continue
        if not line.strip():
            continue
        if len(fields) != 3:
            raise RagbenchError(f"{where}: expected 3 fields with tabs between, found {len(fields)}.")
        query_id, passage_id, score = fields
        if query_id not in queries:
            raise RagbenchError(f"{where}: the query {query_id!r} is not in queries.jsonl.")
        if passage_id in qrels.get(query_id, {}):
            raise RagbenchError(f"{where}: the pair {query_id!r}, {passage_id!r} stands in the file already.")
        if not _SCORE.fullmatch(score):
            raise RagbenchError(f"{where}: the score {score[:40]!r} is no integer.")
        if UNANSWERABLE in queries[query_id].tags:
            raise RagbenchError(f"{where}: the query {query_id!r} is tagged {UNANSWERABLE} and has a gold passage.")
        qrels.setdefault(query_id, {})[passage_id] = int(score)
    return qrels


def _check_corpus_ids(collection: Collection, folder: Path) -> None:
    ids = corpus_ids(collection)
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    first_line: dict[str, int] = {}
    for number, record in _records(folder / "corpus.jsonl"):
        earlier = first_line.setdefault(record["_id"], number)
        if earlier != number:
            raise RagbenchError(
                f"{folder / 'corpus.jsonl'}, line {number}: the id {record['_id']!r} stands already on line {earlier}."
            )


def _check_gold(collection: Collection, folder: Path) -> None:
    """Every passage named by qrels or by a query's needs is in the corpus, and the needs are among the gold."""
    wanted = sorted(
        {passage_id for qrels in collection.qrels.values() for gold in qrels.values() for passage_id in gold}
    )
    found = pc.is_in(pa.array(wanted, type=pa.string()), value_set=corpus_ids(collection)).to_pylist()
    missing = {passage_id for passage_id, present in zip(wanted, found, strict=True) if not present}
    if missing:
        _raise_dangling(folder, missing)
    for qrels in collection.qrels.values():
        for query_id, gold in qrels.items():
            query = collection.queries[query_id]
            stray = [passage_id for group in query.needs for passage_id in group if passage_id not in gold]
            if stray:
                raise RagbenchError(
                    f"{folder / 'queries.jsonl'}, line {query.line}: 'needs' names {stray[0]!r}, which the qrels do "
                    f"not list for {query_id!r}."
                )


def _raise_dangling(folder: Path, missing: set[str]) -> None:
    for path in sorted((folder / "qrels").glob("*.tsv")):
        for number, line in _lines(path):
            fields = line.rstrip("\r\n").split("\t")
            if number > 1 and len(fields) == 3 and fields[1] in missing:
                raise RagbenchError(f"{path}, line {number}: the passage {fields[1]!r} is not in corpus.jsonl.")
