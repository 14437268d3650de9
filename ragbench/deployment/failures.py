"""Failures in the query log: which answers went wrong as far as can be told, gathered into groups, and written out.

What is written is in the collection's own form: somebody who labels it (the answer, and in the qrels a 1 for the
passages that hold it) has new questions for `02_data_prep`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import AgglomerativeClustering

from ragbench.deployment.query_log import Entry
from ragbench.errors import RagbenchError
from ragbench.evaluation.grounding_model import fitted
from ragbench.files import write_text
from ragbench.retrieval.encoder import Encoder, encode

REASONS = ("thumb down", "error", "refused", "low grounding", "low score")
ALIKE = 0.5
"""Cosine between questions of a group, on average."""


@dataclass(frozen=True)
class Failure:
    """An answer that went wrong, and by which of `REASONS` that is told."""

    entry: Entry
    reasons: tuple[str, ...]


def failures_in(entries: Sequence[Entry], lowest_score: float | None = None) -> list[Failure]:
    """Return the answers that a user disliked, that failed, that refuse, or that the scores speak against.

    A thumb up outweighs the scores.

    Args:
        lowest_score: first scores below it count; None where none does. The scores of BM25 and of fusion have no scale
            of their own, so take a low quantile of a good period.
    """
    threshold = fitted("light").threshold
    found = []
    for entry in entries:
        if entry.feedback == 1:
            continue
        told = (
            entry.feedback == -1,
            entry.finish_reason == "error",
            entry.refused,
            entry.grounding is not None and entry.grounding < threshold,
            lowest_score is not None and (not entry.scores or entry.scores[0] < lowest_score),
        )
        if any(told):
            found.append(Failure(entry, tuple(name for name, holds in zip(REASONS, told, strict=True) if holds)))
    return found


def groups(found: Sequence[Failure], encoder: Encoder) -> list[list[Failure]]:
    """Return the failures in groups of alike questions, the largest first; each question but once.

    Raises:
        RagbenchError: the log kept no text.
    """
    asked = {failure.entry.question_hash: failure for failure in found}
    distinct = list(asked.values())
    if any(failure.entry.question is None for failure in distinct):
        raise RagbenchError("The log kept no text, so questions cannot be compared. Serve with --keep-text.")
    if len(distinct) < 2:
        return [[failure] for failure in distinct]
    vectors = encode(encoder, [failure.entry.question or "" for failure in distinct], "query", keep=False)
    labels = AgglomerativeClustering(
        n_clusters=None, distance_threshold=1 - ALIKE, metric="cosine", linkage="average"
    ).fit_predict(vectors)
    gathered = [[distinct[place] for place in np.flatnonzero(labels == label)] for label in np.unique(labels)]
    return sorted(gathered, key=lambda group: (-len(group), group[0].entry.id))


def groups_table(gathered: Sequence[Sequence[Failure]], limit: int = 6, each: int = 3) -> pd.DataFrame:
    """Return the first questions of the largest groups: columns group, question, answer, failed by."""
    rows = [
        (number, failure.entry.question, failure.entry.answer, ", ".join(failure.reasons))
        for number, group in enumerate(gathered[:limit], start=1)
        for failure in group[:each]
    ]
    return pd.DataFrame(rows, columns=["group", "question", "answer", "failed by"])


def export(gathered: Sequence[Sequence[Failure]], folder: Path) -> int:
    """Write the questions for labelling; return how many.

    queries.jsonl has them without an answer, with the answer that was given and why it counts as failed in their
    metadata; qrels/train.tsv has the passages that were shown, each with a 0 to be raised where it holds the answer.

    Raises:
        RagbenchError: the folder is there already.
    """
    if folder.exists():
        raise RagbenchError(f"{folder} is there already; give a new folder.")
    queries, qrels = [], ["query-id\tcorpus-id\tscore\n"]
    for number, group in enumerate(gathered, start=1):
        for failure in group:
            entry = failure.entry
            name = f"log-{entry.question_hash[:12]}"
            metadata = {
                "tags": [],
                "group": number,
                "reasons": list(failure.reasons),
                "given": entry.answer,
                "comment": entry.comment,
            }
            record = {"_id": name, "text": entry.question, "answer": None, "metadata": metadata}
            queries.append(json.dumps(record, ensure_ascii=False) + "\n")
            qrels += [f"{name}\t{passage}\t0\n" for passage in entry.passage_ids]
    write_text(folder / "queries.jsonl", "".join(queries))
    write_text(folder / "qrels" / "train.tsv", "".join(qrels))
    return len(queries)
