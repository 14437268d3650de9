"""A collection at a glance."""

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from ragbench.collection.schema import Collection, passage_texts

_COLUMNS = ("split", "questions", "with answer", "unanswerable", "multi", "gold passages")


def split_overview(collection: Collection) -> pd.DataFrame:
    """Return one row a split: questions, with a reference answer, unanswerable, multi, gold passages, documents."""
    rows = []
    for split, qrels in collection.qrels.items():
        queries = [collection.queries[query_id] for query_id in qrels]
        rows.append(
            {
                "split": split,
                "questions": len(queries),
                "with answer": sum(query.answer is not None for query in queries),
                "unanswerable": sum(not query.answerable for query in queries),
                "multi": sum("multi" in query.tags for query in queries),
                "gold passages": len({passage_id for gold in qrels.values() for passage_id in gold}),
            }
        )
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    total = table.drop(columns="split").sum().to_frame().T.assign(split="all")
    return pd.concat([table, total[table.columns]], ignore_index=True)


def passage_lengths(collection: Collection) -> np.ndarray:
    """Return the characters of each passage, title and text together."""
    return pc.utf8_length(passage_texts(collection)).to_numpy()
