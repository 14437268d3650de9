"""A collection by name or path, and the fingerprint that tells whether it has changed."""

from pathlib import Path

from ragbench.collection.beir import read_collection
from ragbench.collection.embedded import NAME, embedded_collection
from ragbench.collection.schema import Collection
from ragbench.collection.splits import with_dev
from ragbench.errors import RagbenchError
from ragbench.files import sha256_text

_ROWS = 10_000


def load_collection(name: str, root: Path = Path()) -> Collection:
    """Return the embedded default (``pydocs``) or the collection in a folder; a relative path starts at `root`.

    A collection with a train split and no dev split gets one, see `splits.with_dev`.

    Raises:
        RagbenchError: there is no such collection, or it is broken.
    """
    if name == NAME:
        return embedded_collection()
    folder = root / Path(name).expanduser()
    if not folder.is_dir():
        raise RagbenchError(
            f"Collection '{name}': there is no folder {folder}. Give '{NAME}' or a folder in the BEIR layout "
            "(docs/collections.md)."
        )
    return with_dev(read_collection(folder))


def fingerprint(collection: Collection) -> str:
    """Return one SHA-256 over the passages, queries and qrels: equal for equal content, wherever it is stored."""
    parts: list[str] = []
    table = collection.corpus.data.table
    for start in range(0, len(table), _ROWS):  # slices of our own: Arrow's batches depend on how the corpus was read
        for column in table.slice(start, _ROWS).columns:
            parts.append(sha256_text(*column.to_pylist()))
    for query in collection.queries.values():
        parts.append(repr((query.id, query.text, query.answer, query.tags, query.needs)))
    for split, qrels in sorted(collection.qrels.items()):
        parts.append(repr((split, sorted((query_id, sorted(gold.items())) for query_id, gold in qrels.items()))))
    return sha256_text(*parts)
