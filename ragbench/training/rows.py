"""Pairs and their negatives on disk: rows of text, in the columns that Sentence Transformers trains on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset

from ragbench.collection.schema import Collection, passage_texts
from ragbench.errors import RagbenchError
from ragbench.files import atomic_path
from ragbench.training.losses import FROM_TEACHER
from ragbench.training.pairs import Pair

ANCHOR, POSITIVE, NEGATIVE, TEACHER = "anchor", "positive", "negative_", "label"


def training_rows(
    collection: Collection, pairs: Sequence[Pair], negatives: np.ndarray, teacher: np.ndarray | None = None
) -> Dataset:
    """Return columns anchor, positive, negative_1, …, and with a teacher's scores also label.

    Args:
        negatives: corpus rows, of shape (pairs, negatives), none missing.
        teacher: scores of the positive and of each negative, of shape (pairs, 1 + negatives).
    """
    columns: dict[str, list[str]] = {
        ANCHOR: [pair.question for pair in pairs],
        POSITIVE: [pair.positive for pair in pairs],
    }
    for number in range(negatives.shape[1]):
        columns[f"{NEGATIVE}{number + 1}"] = passage_texts(collection, negatives[:, number]).to_pylist()
    rows = Dataset.from_dict(columns)
    return rows if teacher is None else rows.add_column(TEACHER, teacher.tolist())


def write_parquet(rows: Dataset, path: Path) -> None:
    """Write a dataset as Parquet; the file appears whole or not at all."""
    with atomic_path(path) as temporary:
        pq.write_table(rows.data.table, temporary)


def read_rows(path: Path, negatives: int, loss: str) -> Dataset:
    """Read training rows with their first `negatives` negatives, and the teacher's scores if the loss learns from one.

    Raises:
        RagbenchError: the file has fewer negatives, or no teacher's scores.
    """
    table, teacher = pq.read_table(path), loss in FROM_TEACHER
    columns = [ANCHOR, POSITIVE, *(f"{NEGATIVE}{number + 1}" for number in range(negatives))]
    missing = [name for name in [*columns, *([TEACHER] if teacher else [])] if name not in table.column_names]
    if missing:
        raise RagbenchError(
            f"{path} has no column {missing[0]}. Run 02_data_prep with "
            + ("prep_teacher set." if missing[0] == TEACHER else f"prep_negatives of at least {negatives}.")
        )
    rows = Dataset(table.select(columns))
    if not teacher:
        return rows
    scores = [row[: negatives + 1] for row in table.column(TEACHER).to_pylist()]
    return rows.add_column(TEACHER, scores)
