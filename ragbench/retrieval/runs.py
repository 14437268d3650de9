"""Runs: which passages a retriever found for each query, and the TREC files they are kept in."""

import math
from collections.abc import Iterable
from pathlib import Path

from ragbench.errors import RagbenchError
from ragbench.files import write_text

Run = dict[str, dict[str, float]]
"""query id → passage id → score, the best passage first."""


def ranked(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sort (passage id, score) by falling score, equal scores by id, so that a run is the same on every machine."""
    return dict(sorted(scores, key=lambda item: (-item[1], item[0])))


def top(run: Run, query_id: str, k: int) -> list[str]:
    """Return the ids of the `k` best passages of a query; an empty list if the run lacks it."""
    return list(run.get(query_id, {}))[:k]


def reciprocal_rank_fusion(runs: Iterable[Run], depth: int, constant: int = 60) -> Run:
    """Fuse runs by the sum of 1 / (constant + rank) (Cormack, Clarke and Büttcher 2009); keep the `depth` best."""
    fused: dict[str, dict[str, float]] = {}
    for run in runs:
        for query_id, scores in run.items():
            into = fused.setdefault(query_id, {})
            for rank, passage_id in enumerate(scores, start=1):
                into[passage_id] = into.get(passage_id, 0.0) + 1.0 / (constant + rank)
    return {query_id: dict(list(ranked(scores.items()).items())[:depth]) for query_id, scores in fused.items()}


def write_run(run: Run, path: Path, name: str) -> None:
    """Write a run in TREC's six columns: query, Q0, passage, rank, score, name of the run."""
    lines = [
        f"{query_id} Q0 {passage_id} {rank} {score!r} {name}\n"
        for query_id, scores in run.items()
        for rank, (passage_id, score) in enumerate(scores.items(), start=1)
    ]
    write_text(path, "".join(lines))


def read_run(path: Path) -> Run:
    """Read a TREC run; within a query the passages are ordered by score.

    Raises:
        RagbenchError: the file cannot be read, a line has not six columns, or a score is no finite number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RagbenchError(f"{path} cannot be read as a TREC run: {error}.") from error
    run: dict[str, list[tuple[str, float]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            query_id, _, passage_id, _, text, _ = line.split()
            score = float(text)
        except ValueError as error:
            raise RagbenchError(f"{path}, line {number}: not a line of a TREC run (six columns): {line!r}.") from error
        if not math.isfinite(score):
            raise RagbenchError(f"{path}, line {number}: the score {text} is no finite number.")
        run.setdefault(query_id, []).append((passage_id, score))
    return {query_id: ranked(scores) for query_id, scores in run.items()}
