"""Positives: a question and the passage that answers it, from labels or from the structure of the corpus itself."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragbench.collection.schema import Collection, Passage, corpus_ids, passages, rows_of, split_queries
from ragbench.errors import RagbenchError
from ragbench.evaluation.sentences import sentences

TRAIN = "train"
MIN_WORDS = 4
"""A title or first sentence of fewer words asks for nothing in particular."""


@dataclass(frozen=True)
class Pair:
    """One question with one passage that answers it.

    Attributes:
        query_id: the query; for a pair made from the corpus, its source, the passage's id and a number.
        question: what is asked.
        passage_id: the passage.
        positive: the passage's text as it is trained on: of a structural pair what is left without the question.
        source: ``labelled``, ``synthetic``, ``title`` or ``sentence``.
    """

    query_id: str
    question: str
    passage_id: str
    positive: str
    source: str


def labelled_pairs(collection: Collection, split: str = TRAIN) -> list[Pair]:
    """Return a pair for every gold passage of every question of a split; none if the collection lacks the split."""
    if split not in collection.qrels:
        return []
    gold = {
        query.id: [passage_id for passage_id, score in collection.qrels[split][query.id].items() if score > 0]
        for query in split_queries(collection, split)
    }
    known = passages(collection, (passage_id for ids in gold.values() for passage_id in ids))
    return [
        Pair(query_id, collection.queries[query_id].text, passage_id, known[passage_id].full_text, "labelled")
        for query_id, ids in gold.items()
        for passage_id in ids
    ]


def trainable_rows(collection: Collection) -> np.ndarray:
    """Return the corpus rows of the documents that hold no gold passage of a split other than train.

    Only these may give questions: the splits are kept apart by document before anything is made from the corpus.
    """
    held_out = {
        passage_id
        for split, qrels in collection.qrels.items()
        if split != TRAIN
        for gold in qrels.values()
        for passage_id, score in gold.items()
        if score > 0
    }
    documents = collection.corpus.data.column("document_id")
    closed = documents.take(pa.array(rows_of(collection, sorted(held_out))))
    return np.flatnonzero(pc.invert(pc.is_in(documents, value_set=closed)).to_numpy())


def uncovered(collection: Collection, pairs: Iterable[Pair], limit: int, seed: int) -> list[Passage]:
    """Return up to `limit` passages, drawn at random, that may give questions and that no pair covers."""
    covered = rows_of(collection, sorted({pair.passage_id for pair in pairs}))
    open_rows = np.setdiff1d(trainable_rows(collection), covered)
    drawn = np.sort(np.random.default_rng(seed).permutation(open_rows)[:limit])
    return list(passages(collection, corpus_ids(collection).take(pa.array(drawn)).to_pylist()).values())


def structural_pairs(found: Sequence[Passage], kinds: Sequence[str]) -> list[Pair]:
    """Return pairs that cost nothing: a passage's title, or its first sentence, against the rest of it.

    The first sentence as a query is the inverse cloze task (Lee, Chang and Toutanova 2019). Titles and sentences below
    `MIN_WORDS` words, and passages with nothing else in them, give no pair.

    Raises:
        RagbenchError: a kind is not ``title`` or ``sentence``.
    """
    unknown = sorted(set(kinds) - set(_CUT))
    if unknown:
        raise RagbenchError(f"prep_sources has '{unknown[0]}'; made from the corpus are {' and '.join(_CUT)}.")
    made = [(kind, passage, *_CUT[kind](passage)) for passage in found for kind in kinds]
    return [
        Pair(f"{kind}:{passage.id}", question, passage.id, rest, kind)
        for kind, passage, question, rest in made
        if len(question.split()) >= MIN_WORDS and len(rest.split()) >= MIN_WORDS
    ]


def _by_title(passage: Passage) -> tuple[str, str]:
    # Articles cut into passages often repeat their title at the head of the first one: that would give it away.
    return passage.title.strip(), passage.text.strip().removeprefix(passage.title.strip()).strip()


def _by_sentence(passage: Passage) -> tuple[str, str]:
    first, *rest = sentences(passage.text) or [""]
    title = passage.title.strip()
    return first, " ".join([*([title] if title != first else []), *rest]).strip() if rest else ""


_CUT = {"title": _by_title, "sentence": _by_sentence}
