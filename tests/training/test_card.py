import json

import numpy as np
import pandas as pd
import pytest

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.training.card import card, facts
from ragbench.training.dev import HELD_OUT, LABELLED, DevSet
from ragbench.training.example_checks import Checked, Rejected
from ragbench.training.examples import Example
from ragbench.training.negatives import OUTCOMES, Mined
from ragbench.training.pairs import Pair
from ragbench.training.sources import Gathered
from ragbench.training.synthetic import Filtered, Removed

QRELS = {"train": {"q1": {"p1": 1}}, "test": {"q2": {"p2": 1}, "q3": {}}}
DATA = Collection(
    "shop",
    corpus_from_rows((f"p{n}", "", f"text {n}", "d") for n in range(9)),
    {name: Query(name, name) for name in ("q1", "q2", "q3")},
    QRELS,
)
PAIRS = [Pair("q1", "Which?", "p1", "text 1", "labelled"), *(Pair(f"t{n}", "A?", "p3", "x", "title") for n in range(3))]
REMOVED = [
    Removed("A?", "p1", "leak", "copies q2"),
    Removed("B?", "p1", "leak", ""),
    Removed("C?", "p2", "malformed", ""),
]
ROWS = np.array([[4, 5], [6, -1], [-1, -1], [7, 8]])
MINED = Mined(ROWS, pd.DataFrame({"outcome": OUTCOMES, "candidates": np.arange(len(OUTCOMES))}), [])
EXAMPLE = Example("q1", "train", "gold retrieved", (), "Yes. [p1]", ("p1",), ("p1",), ())
CHECKED = Checked((EXAMPLE, EXAMPLE), (Rejected(EXAMPLE, "length", "too long"),))
FILES = {"pairs.parquet": "ab" * 32, "dev.json": "cd" * 32}


DEV = DevSet(LABELLED, {"q2": "q2"}, {"q2": ["p2"]})


def known(dev: DevSet = DEV, mined: Mined = MINED):
    gathered = Gathered([*PAIRS, PAIRS[0]], REMOVED, Filtered([], [], ("p4", "p5")))
    return facts(DATA, gathered, PAIRS, mined, dev, CHECKED, FILES)


def test_the_facts_count_what_is_there():
    assert known() == {
        "collection": "shop",
        "splits": {"train": 1, "test": 2},
        "pairs": {"labelled": 1, "title": 3},
        "passages": 2,
        "removed": {"leak": 2, "malformed": 1},
        "passages nobody asked about": 2,
        "dev": {"kind": "labelled", "questions": 1},
        "negatives": {
            "asked for each pair": 2,
            "mined": 5,
            "pairs with fewer": 2,
            "candidates": dict(zip(OUTCOMES, range(len(OUTCOMES)), strict=True)),
        },
        "generator examples": {"gold retrieved": 2},
        "generator examples rejected": {"length": 1},
        "files": FILES,
    }


def test_the_facts_are_json():
    assert json.loads(json.dumps(known())) == known()


def test_without_negatives_none_are_counted():
    none = Mined(np.empty((4, 0), dtype=np.int64), MINED.outcomes, [])
    found = known(mined=none)["negatives"]
    assert (found["asked for each pair"], found["mined"], found["pairs with fewer"]) == (0, 0, 0)


def test_the_card_has_every_count_and_every_hash():
    text = card(known(), {"prep_negatives": 2, "generator_model": "writer-1B"})
    assert text.startswith("# Training data from shop\n")
    lines = text.splitlines()
    for line in (
        "- labelled: 1",
        "- title: 3",
        "- leak: 2",
        "- malformed: 1",
        "5 mined, 2 asked for each pair; 2 pairs had fewer left and were filled up at random.",
        *(f"- {outcome}: {number}" for number, outcome in enumerate(OUTCOMES)),
        "- gold retrieved: 2",
        "- length: 1",
        "1 questions: the collection's dev split.",
        "- train: 1",
        "- test: 2",
        "- prep_negatives: 2",
        "- generator_model: writer-1B",
        *(f"- {name}: {sha256}" for name, sha256 in FILES.items()),
    ):
        assert line in lines


def test_the_card_says_that_nothing_labelled_is_in_what_was_held_out():
    text = card(known(DevSet(HELD_OUT, {"t1": "A?", "t2": "B?"}, {"t1": ["p3"], "t2": ["p3"]})), {})
    assert "2 questions: pairs held back from training, by document: nothing labelled." in text


@pytest.mark.parametrize("title", ["Questions removed", "Made with", "Examples rejected"])
def test_what_there_is_none_of_is_said(title):
    empty = known() | {"removed": {}, "generator examples rejected": {}}
    assert f"## {title}\n\nnone\n" in card(empty, {})
