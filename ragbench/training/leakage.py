"""Near-copies among short questions, and training questions that copy a held-out one.

Two questions are near-copies when the cosine of their TF-IDF word vectors is at least `NEAR`. Rare words weigh most:
questions of one pattern about different things are no copies, while another case, punctuation, order or one changed
word in ten make little difference. Paraphrases in other words are not found.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from ragbench.collection.schema import Collection, split_queries
from ragbench.evaluation.answer_metrics import words
from ragbench.training.pairs import TRAIN, Pair

NEAR = 0.8
"""Far above what different questions of people have in common (a test looks at those of the embedded collection), and
below what one changed word in ten leaves. Questions of one long pattern can reach it about different things ("What is
the purpose of the copytree function in the shutil module?" and the same of rmtree)."""
_CELLS = 10_000_000


def near_copies(texts: Sequence[str], against: Sequence[str]) -> list[int | None]:
    """Return for each text the place of the one in `against` that it copies, the most similar; None if it copies none.

    Whether a text is found depends on no order. Texts without a word count as copies of each other. 100,000 texts
    against 1,000 take seconds: the search is exact, over sparse vectors.
    """
    if not against:
        return [None] * len(texts)
    return [
        int(best) if row[best] >= NEAR else None
        for part in _similarities(texts, against)
        for row, best in zip(part, part.argmax(axis=1), strict=True)
    ]


def repeats(texts: Sequence[str]) -> list[int | None]:
    """Return for each text the place of the first text before it that it copies and that copies none itself, or None.

    Those with None are thus no copies of each other. The time grows with the square of the number: seconds for 10,000.
    """
    kept = np.zeros(len(texts), dtype=bool)
    found: list[int | None] = []
    for row in (row for part in _similarities(texts, texts) for row in part):
        earlier = np.flatnonzero(kept & (row >= NEAR))
        kept[len(found)] = not len(earlier)
        found.append(int(earlier[0]) if len(earlier) else None)
    return found


def held_out_questions(collection: Collection) -> dict[str, str]:
    """Return the text of every question of every split other than train, by query id."""
    return {
        query_id: collection.queries[query_id].text
        for split, qrels in collection.qrels.items()
        if split != TRAIN
        for query_id in qrels
    }


def leaks(pairs: Sequence[Pair], collection: Collection) -> dict[int, str]:
    """Return which pairs ask a held-out question: place in `pairs` → id of the held-out query that it copies."""
    held_out = held_out_questions(collection)
    ids = list(held_out)
    copied = near_copies([pair.question for pair in pairs], list(held_out.values()))
    return {place: ids[copy] for place, copy in enumerate(copied) if copy is not None}


def leaking_queries(collection: Collection, splits: Sequence[str]) -> frozenset[str]:
    """Return the ids of the questions of some splits that copy one of a split other than train and their own."""
    found: set[str] = set()
    for split in splits:
        queries = split_queries(collection, split) if split in collection.qrels else []
        others = [
            collection.queries[name].text
            for other, qrels in collection.qrels.items()
            if other not in (TRAIN, split)
            for name in qrels
        ]
        copied = near_copies([query.text for query in queries], others)
        found |= {query.id for query, copy in zip(queries, copied, strict=True) if copy is not None}
    return frozenset(found)


def _similarities(texts: Sequence[str], against: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield the cosines of consecutive texts, each of shape (some texts, against)."""
    if not texts:
        return
    # The empty word stands for a text that has none, so that every vector has a length.
    vectorizer = TfidfVectorizer(analyzer=lambda text: words(text) or [""], binary=True)
    vectors = vectorizer.fit_transform([*texts, *against])
    ours, theirs = vectors[: len(texts)], vectors[len(texts) :].T.tocsr()
    rows = max(1, _CELLS // len(against))
    for start in range(0, len(texts), rows):
        yield (ours[start : start + rows] @ theirs).toarray()
