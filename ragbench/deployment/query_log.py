"""The query log: every answered question, in SQLite with write-ahead logging.

A batch of answers is one transaction, which the service commits before it replies: whatever a client was told is in the
log, even after a kill. Text is kept only if wanted; without it there are hashes, scores and lengths.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ragbench.cache import write_ahead
from ragbench.errors import RagbenchError
from ragbench.files import sha256_text

_TABLE = """
CREATE TABLE IF NOT EXISTS queries (
    id TEXT PRIMARY KEY, time REAL NOT NULL, question TEXT, question_hash TEXT NOT NULL, answer TEXT,
    answer_hash TEXT NOT NULL, passage_ids TEXT NOT NULL, scores TEXT NOT NULL, refused INTEGER NOT NULL,
    grounding REAL, seconds REAL NOT NULL, bundle TEXT NOT NULL, finish_reason TEXT NOT NULL,
    feedback INTEGER, comment TEXT
) WITHOUT ROWID
"""
_BY_TIME = "CREATE INDEX IF NOT EXISTS queries_by_time ON queries (time)"
DAY = 86_400.0


@dataclass(frozen=True)
class Entry:
    """One answered question.

    Attributes:
        id: the reply's.
        time: of the reply, seconds since 1970.
        question, answer: None where text is not kept.
        question_hash, answer_hash: SHA-256 of the text.
        passage_ids, scores: of the passages shown, best first.
        refused: whether the answer is a refusal.
        grounding: the offline estimate, None where it was not made.
        seconds: from the question to the answer.
        bundle: NAME/VERSION.
        finish_reason: ``stop``, ``length`` or ``error``.
        feedback: 1 or -1 where a user gave it.
        comment: what the user said about it.
    """

    id: str
    time: float
    question: str | None
    question_hash: str
    answer: str | None
    answer_hash: str
    passage_ids: tuple[str, ...]
    scores: tuple[float, ...]
    refused: bool
    grounding: float | None
    seconds: float
    bundle: str
    finish_reason: str
    feedback: int | None = None
    comment: str | None = None


_COLUMNS = tuple(field.name for field in fields(Entry))
_LISTS = ("passage_ids", "scores")


class QueryLog:
    """A log that is open for writing; one writer at a time, any number of readers."""

    def __init__(self, path: Path, *, keep_text: bool = True, days: float = 0.0) -> None:
        """Open the log, or make it.

        Args:
            keep_text: whether questions, answers and comments are kept.
            days: what is older is deleted; 0 keeps everything.

        Raises:
            RagbenchError: the file is no log.
        """
        self._path, self._keep_text, self._days = path, keep_text, days
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
            write_ahead(self._connection)
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(_TABLE)
            self._connection.execute(_BY_TIME)
            self._connection.commit()
        except (sqlite3.DatabaseError, OSError) as error:
            raise RagbenchError(
                f"{path} cannot be used as a query log ({error}). Move it away, or give another."
            ) from error

    def add(self, entries: Iterable[Entry]) -> None:
        """Add answered questions in one transaction, and delete what is too old."""
        rows = [_row(_without_text(entry) if not self._keep_text else entry) for entry in entries]
        marks = ", ".join("?" * len(_COLUMNS))
        with self._lock, self._connection:
            self._connection.executemany(f"INSERT INTO queries ({', '.join(_COLUMNS)}) VALUES ({marks})", rows)
            if self._days:
                self._connection.execute("DELETE FROM queries WHERE time < ?", (time.time() - self._days * DAY,))

    def set_grounding(self, scores: Iterable[tuple[str, float | None]]) -> None:
        """Add the grounding estimates of answers, by their ids."""
        with self._lock, self._connection:
            self._connection.executemany(
                "UPDATE queries SET grounding = ? WHERE id = ?", [(score, name) for name, score in scores]
            )

    def add_feedback(self, name: str, feedback: int, comment: str = "") -> bool:
        """Add a user's thumb up (1) or down (-1) to an answer; return whether the log has that answer."""
        said = comment or None if self._keep_text else None
        with self._lock, self._connection:
            done = self._connection.execute(
                "UPDATE queries SET feedback = ?, comment = ? WHERE id = ?", (feedback, said, name)
            )
        return done.rowcount > 0

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def make_entry(
    name: str, question: str, answer: str, passages: Sequence[tuple[str, float]], refused: bool, **known: Any
) -> Entry:
    """Return an entry; `passages` are ids with scores, `known` holds seconds, bundle and finish_reason."""
    return Entry(
        id=name,
        time=time.time(),
        question=question,
        question_hash=sha256_text(question),
        answer=answer,
        answer_hash=sha256_text(answer),
        passage_ids=tuple(each for each, _ in passages),
        scores=tuple(round(score, 6) for _, score in passages),
        refused=refused,
        grounding=None,
        **known,
    )


def read_log(path: Path, since: float = 0.0, until: float = float("inf")) -> list[Entry]:
    """Return the entries of a log with ``since <= time < until``, oldest first.

    Raises:
        RagbenchError: there is no log.
    """
    if not path.is_file():
        raise RagbenchError(f"There is no query log {path}. `ragbench serve` writes one.")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=60)) as connection:
            rows = connection.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM queries WHERE time >= ? AND time < ? ORDER BY time, id",
                (since, min(until, 1e18)),
            ).fetchall()
    except sqlite3.DatabaseError as error:
        raise RagbenchError(f"{path} cannot be read as a query log ({error}).") from error
    return [_entry(dict(zip(_COLUMNS, row, strict=True))) for row in rows]


def _row(entry: Entry) -> tuple[Any, ...]:
    record = asdict(entry)
    return tuple(json.dumps(record[name]) if name in _LISTS else record[name] for name in _COLUMNS)


def _entry(record: dict[str, Any]) -> Entry:
    lists = {name: tuple(json.loads(record[name])) for name in _LISTS}
    return Entry(**{**record, **lists, "refused": bool(record["refused"])})


def _without_text(entry: Entry) -> Entry:
    return Entry(**{**vars(entry), "question": None, "answer": None, "comment": None})
