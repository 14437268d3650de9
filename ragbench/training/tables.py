"""Training data as tables: a few rows of everything, kept and removed, for people to read; and as files."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from datasets import Dataset, Features, List, Value

from ragbench.collection.schema import Collection, corpus_ids, passages
from ragbench.training.dev import LABELLED, DevSet
from ragbench.training.example_checks import Checked
from ragbench.training.negatives import Candidate, Mined
from ragbench.training.pairs import Pair
from ragbench.training.synthetic import Removed

_CHARACTERS = 160
_EACH = 2


def dev_table(dev: DevSet, pairs: Sequence[Pair]) -> pd.DataFrame:
    """Return what is trained on and what chooses: columns part, questions, from."""
    origin = "the dev split" if dev.kind == LABELLED else "pairs held back from training: nothing labelled is there"
    rows = [
        ("trains", len({pair.question for pair in pairs}), f"{len(pairs)} pairs"),
        ("chooses", len(dev.questions), origin),
    ]
    return pd.DataFrame(rows, columns=["part", "questions", "from"])


def pair_examples(pairs: Sequence[Pair], each: int = _EACH) -> pd.DataFrame:
    """Return the first pairs of each source: columns source, question, passage, text."""
    return pd.DataFrame(
        [
            (pair.source, pair.question, pair.passage_id, _short(pair.positive))
            for source in dict.fromkeys(pair.source for pair in pairs)
            for pair in [pair for pair in pairs if pair.source == source][:each]
        ],
        columns=["source", "question", "passage", "text"],
    )


def removed_examples(removed: Sequence[Removed], each: int = _EACH) -> pd.DataFrame:
    """Return the first questions that each filter removed: columns removed for, question, passage, found."""
    return pd.DataFrame(
        [
            (reason, one.text, one.passage_id, one.detail)
            for reason in dict.fromkeys(one.reason for one in removed)
            for one in [one for one in removed if one.reason == reason][:each]
        ],
        columns=["removed for", "question", "passage", "found"],
    )


def candidate_examples(collection: Collection, candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Return the candidates that were kept and removed: outcome, question, passage, text, rank, scores."""
    known = passages(collection, (candidate.passage_id for candidate in candidates))
    return pd.DataFrame(
        [
            (
                candidate.outcome,
                candidate.pair.question,
                candidate.passage_id,
                _short(known[candidate.passage_id].full_text),
                f"{candidate.source} {candidate.rank}",
                candidate.score,
                candidate.positive_score,
            )
            for candidate in candidates
        ],
        columns=["became", "question", "passage", "text", "rank", "score", "positive's"],
    )


def example_texts(checked: Checked) -> pd.DataFrame:
    """Return the first example of each kind for the generator: kind, shown last, expected."""
    return pd.DataFrame(
        [
            (kind, _tail(example.messages[-1]["content"]), ", ".join(example.context_ids), example.completion)
            for kind in dict.fromkeys(example.kind for example in checked.kept)
            for example in [example for example in checked.kept if example.kind == kind][:1]
        ],
        columns=["kind", "prompt ends", "passages", "expected"],
    )


def rejected_texts(checked: Checked, each: int = _EACH) -> pd.DataFrame:
    """Return the first examples that each check rejected: rejected for, query, expected, found."""
    return pd.DataFrame(
        [
            (reason, one.example.query_id, one.example.completion, one.detail)
            for reason in dict.fromkeys(one.reason for one in checked.rejected)
            for one in [one for one in checked.rejected if one.reason == reason][:each]
        ],
        columns=["rejected for", "query", "expected", "found"],
    )


def pairs_dataset(collection: Collection, pairs: Sequence[Pair], mined: Mined) -> Dataset:
    """Return where each training row comes from, in their order: query, passage, source, ids of mined negatives."""
    ids = corpus_ids(collection)
    rows = [
        {
            "query_id": pair.query_id,
            "passage_id": pair.passage_id,
            "source": pair.source,
            "negative_ids": [ids[int(row)].as_py() for row in negatives if row >= 0],
        }
        for pair, negatives in zip(pairs, mined.rows, strict=True)
    ]
    text = Value("string")
    features = Features({"query_id": text, "passage_id": text, "source": text, "negative_ids": List(text)})
    return _dataset(rows, features)


def removed_dataset(removed: Sequence[Removed]) -> Dataset:
    """Return the questions that were removed: question, passage_id, reason, detail."""
    rows = [
        {"question": one.text, "passage_id": one.passage_id, "reason": one.reason, "detail": one.detail}
        for one in removed
    ]
    names = ("question", "passage_id", "reason", "detail")
    return _dataset(rows, Features({name: Value("string") for name in names}))


def _dataset(rows: Sequence[Mapping[str, Any]], features: Features) -> Dataset:
    # Dataset.from_list fails where there is no row.
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def _short(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS].rsplit(" ", 1)[0] + " …"


def _tail(text: str) -> str:
    return text if len(text) <= _CHARACTERS else "… " + text[-_CHARACTERS:].split(" ", 1)[-1]
