"""A dev split for collections that have none: held out from train by document, before anything is made of it."""

from collections import defaultdict
from dataclasses import replace

import numpy as np

from ragbench.collection.schema import Collection, passages

TRAIN, DEV = "train", "dev"
SHARE = 0.1
SEED = 0
"""Fixed: the split belongs to the collection, not to an experiment."""


def with_dev(collection: Collection) -> Collection:
    """Return a collection that has a dev split: as it is, or with a tenth of train's questions held out.

    Questions that share a gold document, also by way of other questions, stay together, so that no document is gold in
    both. Of the questions without gold passages a tenth is drawn. Where train's questions all hang together, or there
    is no train split, nothing is held out.
    """
    if DEV in collection.qrels or TRAIN not in collection.qrels:
        return collection
    groups, loose = _groups(collection)
    draw = np.random.default_rng(SEED)
    wanted = max(1, round(SHARE * sum(map(len, groups))))
    held: set[str] = set()
    for place in draw.permutation(len(groups)):
        # A large group stays: it would take far more than a tenth.
        if len(held) < wanted and len(held) + len(groups[place]) <= 2 * wanted:
            held |= set(groups[place])
    if not held or len(groups) < 2:
        return collection
    held |= {loose[place] for place in draw.permutation(len(loose))[: round(SHARE * len(loose))]}
    train = collection.qrels[TRAIN]
    parts = {
        TRAIN: {name: gold for name, gold in train.items() if name not in held},
        DEV: {name: gold for name, gold in train.items() if name in held},
    }
    return replace(collection, qrels=collection.qrels | parts)


def _groups(collection: Collection) -> tuple[list[list[str]], list[str]]:
    """Return train's questions in groups that share gold documents, and those without gold passages."""
    gold = {
        query_id: [name for name, score in judged.items() if score > 0]
        for query_id, judged in collection.qrels[TRAIN].items()
    }
    known = passages(collection, (name for names in gold.values() for name in names))
    leader: dict[str, str] = {}

    def first(document: str) -> str:
        while leader.setdefault(document, document) != document:
            leader[document] = document = leader[leader[document]]
        return document

    for names in gold.values():
        for name in names[1:]:
            leader[first(known[name].document_id)] = first(known[names[0]].document_id)
    groups: dict[str, list[str]] = defaultdict(list)
    for query_id, names in gold.items():
        if names:
            groups[first(known[names[0]].document_id)].append(query_id)
    return list(groups.values()), [query_id for query_id, names in gold.items() if not names]
