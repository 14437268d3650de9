"""The content-addressed caches: embeddings, answers, judgements and unpacked models, in one folder.

A cache is one SQLite file of key → bytes. Keys are hashes of everything that a value depends on, so an entry is never
out of date, and several runs and processes share the folder. Each `put` is one transaction: a killed run loses only
what it had not put.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from ragbench.errors import RagbenchError

_KEYS_PER_SELECT = 500
_PATIENCE = 60.0
"""Seconds to wait for another process that writes."""


def cache_folder() -> Path:
    """Return the folder of all caches: the environment's ``RAGBENCH_CACHE``, else the user's cache folder."""
    configured = os.environ.get("RAGBENCH_CACHE")
    return Path(configured).expanduser().resolve() if configured else user_cache_path("ragbench")


@contextmanager
def _open(name: str) -> Iterator[sqlite3.Connection]:
    path = cache_folder() / f"{name}.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_PATIENCE)) as connection:
            write_ahead(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
            yield connection
    except (sqlite3.Error, OSError) as error:
        raise RagbenchError(
            f"The cache {path} cannot be used ({error}). Set RAGBENCH_CACHE to a writable folder, "
            f"or empty it with `ragbench cache clear {name}`."
        ) from error


def write_ahead(connection: sqlite3.Connection) -> None:
    """Switch a connection to write-ahead logging.

    SQLite does not wait by itself where another process is just doing the same.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.02)


def get(name: str, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (key, value) for those `keys` (hex digests) that the cache `name` holds, in no particular order."""
    for key, value in _select(name, keys, "key, value"):
        yield key.hex(), value


def contains(name: str, keys: Iterable[str]) -> set[str]:
    """Return those `keys` (hex digests) that the cache `name` holds."""
    return {key.hex() for (key,) in _select(name, keys, "key")}


def _select(name: str, keys: Iterable[str], columns: str) -> Iterator[tuple[bytes, ...]]:
    wanted = list(dict.fromkeys(keys))
    with _open(name) as connection:
        for start in range(0, len(wanted), _KEYS_PER_SELECT):
            part = [bytes.fromhex(key) for key in wanted[start : start + _KEYS_PER_SELECT]]
            marks = ",".join("?" * len(part))
            yield from connection.execute(f"SELECT {columns} FROM entries WHERE key IN ({marks})", part)


def put(name: str, entries: Mapping[str, bytes]) -> None:
    """Add entries (hex digest → value) in one transaction. A key that is there already keeps its first value."""
    rows = [(bytes.fromhex(key), value) for key, value in entries.items()]
    with _open(name) as connection, connection:
        connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?)", rows)


def sizes() -> dict[str, int]:
    """Return the size in bytes of each part of the cache folder, by name."""
    folder = cache_folder()
    if not folder.is_dir():
        return {}
    totals: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            part = path.relative_to(folder).parts[0].split(".sqlite")[0]
            totals[part] = totals.get(part, 0) + path.stat().st_size
    return dict(sorted(totals.items()))


def clear(name: str | None = None) -> int:
    """Delete one part of the cache folder, or everything; return the bytes freed.

    Raises `RagbenchError` for a name that is not there.
    """
    present = sizes()
    if name is not None and name not in present:
        raise RagbenchError(
            f"There is no cache '{name}' in {cache_folder()}; there are: {', '.join(present) or 'none'}."
        )
    chosen = [name] if name is not None else list(present)
    for part in chosen:
        shutil.rmtree(cache_folder() / part, ignore_errors=True)
        for path in cache_folder().glob(f"{part}.sqlite*"):
            path.unlink()
    return sum(present[part] for part in chosen)
