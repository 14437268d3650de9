"""A corpus whose questions use a made-up vocabulary that only labelled pairs explain."""

import itertools
import random

from ragbench.collection.schema import Collection, Query, corpus_from_rows

LETTERS, VOWELS = "bdgklmnprst", "aeiou"
WORDS = ["".join(parts) for parts in itertools.product(LETTERS, VOWELS, LETTERS)][:200]
"""Words that the tiny encoder's tokenizer knows."""


def planted_collection(concepts: int = 24, seed: int = 0) -> Collection:
    """Every concept has one word in questions and another in passages; a passage is about two concepts.

    Each pair of concepts has one passage and one question; a third of the questions each is in train, dev and test, so
    that a held-out question is made of known words in an unknown combination.
    """
    draw = random.Random(seed)
    words = draw.sample(WORDS, 2 * concepts)
    asked, told = words[:concepts], words[concepts:]
    combinations = list(itertools.combinations(range(concepts), 2))
    draw.shuffle(combinations)
    rows, queries = [], {}
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    for number, (one, two) in enumerate(combinations):
        rows.append((f"p{number}", "", f"{told[one]} {told[two]}", f"d{number}"))
        split = "train" if number % 3 else ("dev" if number % 2 else "test")
        queries[f"q{number}"] = Query(f"q{number}", f"{asked[two]} {asked[one]}")
        qrels[split][f"q{number}"] = {f"p{number}": 1}
    return Collection("planted", corpus_from_rows(rows), queries, qrels)
