import numpy as np
import pandas as pd
import pytest

from ragbench.collection.schema import Collection, corpus_from_rows
from ragbench.training.dev import HELD_OUT, LABELLED, DevSet
from ragbench.training.example_checks import Checked, Rejected
from ragbench.training.examples import Example
from ragbench.training.negatives import Candidate, Mined
from ragbench.training.pairs import Pair
from ragbench.training.synthetic import Removed
from ragbench.training.tables import (
    candidate_examples,
    dev_table,
    example_texts,
    pair_examples,
    pairs_dataset,
    rejected_texts,
    removed_dataset,
    removed_examples,
)

LONG = "word " * 100
DATA = Collection("c", corpus_from_rows((f"p{n}", "Title", f"{n} {LONG}", "d") for n in range(4)), {}, {})
PAIRS = [
    Pair("q1", "Which?", "p0", "short", "labelled"),
    Pair("q1", "Which?", "p1", "short", "labelled"),
    Pair("q2", "Why?", "p1", LONG, "labelled"),
    Pair("title:p2", "Title", "p2", "rest", "title"),
]
REMOVED = [
    Removed(f"Q{n}?", "p1", reason, f"found {n}") for n, reason in enumerate(["leak", "leak", "leak", "malformed"])
]


def example(kind: str, query_id: str = "q1") -> Example:
    messages = ({"role": "system", "content": "s"}, {"role": "user", "content": f"{LONG}the end"})
    return Example(query_id, "train", kind, messages, "Yes. [p1]", ("p1", "p2"), ("p1",), ())  # type: ignore[arg-type]


EXAMPLES = (example("gold retrieved"), example("gold retrieved", "q2"), example("unanswerable", "q3"))
REJECTED = tuple(Rejected(each, reason, "why") for each in EXAMPLES for reason in ("length", "leak"))
MINED = Mined(np.array([[3, -1], [-1, -1], [0, 3], [1, 0]]), pd.DataFrame(), [])


def test_what_trains_and_what_chooses_are_told_apart():
    table = dev_table(DevSet(LABELLED, {"q9": "Who?"}, {"q9": ["p3"]}), PAIRS)
    assert table.to_dict("list") == {
        "part": ["trains", "chooses"], "questions": [3, 1], "from": ["4 pairs", "the dev split"]
    }  # fmt: skip
    assert "nothing labelled" in dev_table(DevSet(HELD_OUT, {}, {}), PAIRS)["from"][1]


@pytest.mark.parametrize(("each", "shown"), [(1, ["p0", "p2"]), (2, ["p0", "p1", "p2"]), (9, ["p0", "p1", "p1", "p2"])])
def test_some_pairs_of_every_source_are_shown(each, shown):
    table = pair_examples(PAIRS, each)
    assert table["passage"].tolist() == shown
    assert list(dict.fromkeys(table["source"])) == ["labelled", "title"]


def test_a_long_text_is_cut_between_words_and_a_short_one_is_not():
    texts = pair_examples(PAIRS, 9)["text"].tolist()
    assert texts[0] == "short"
    assert len(texts[2]) < 165 and texts[2].endswith("word …") and LONG.startswith(texts[2][:-2])


def test_some_removed_questions_of_every_filter_are_shown():
    table = removed_examples(REMOVED)
    assert table["removed for"].tolist() == ["leak", "leak", "malformed"]
    assert table.iloc[2].tolist() == ["malformed", "Q3?", "p1", "found 3"]


def test_candidates_are_shown_with_rank_and_scores():
    candidates = [
        Candidate(PAIRS[0], "p3", "bm25", 7, 0.25, 0.5, "kept"),
        Candidate(PAIRS[2], "p0", "dense", 1, 0.75, 0.5, "known positive"),
    ]
    table = candidate_examples(DATA, candidates)
    assert table["became"].tolist() == ["kept", "known positive"]
    row = table.iloc[0].drop("text").tolist()
    assert row == ["kept", "Which?", "p3", "bm25 7", 0.25, 0.5]
    assert table["text"][0].startswith("Title 3 word")


def test_one_example_of_every_kind_is_shown_from_its_end():
    table = example_texts(Checked(EXAMPLES, ()))
    assert table["kind"].tolist() == ["gold retrieved", "unanswerable"]
    assert table["prompt ends"][0].startswith("… word") and table["prompt ends"][0].endswith("the end")
    assert table.iloc[1, 2:].tolist() == ["p1, p2", "Yes. [p1]"]


@pytest.mark.parametrize(("each", "queries"), [(1, ["q1", "q1"]), (2, ["q1", "q2", "q1", "q2"])])
def test_some_rejected_examples_of_every_check_are_shown(each, queries):
    table = rejected_texts(Checked((), REJECTED), each)
    assert table["query"].tolist() == queries
    assert set(table["rejected for"]) == {"length", "leak"}


def test_the_pairs_data_set_has_a_row_for_each_training_row():
    rows = pairs_dataset(DATA, PAIRS, MINED).to_list()
    assert [row["negative_ids"] for row in rows] == [["p3"], [], ["p0", "p3"], ["p1", "p0"]]
    assert rows[3] == {
        "query_id": "title:p2", "passage_id": "p2", "source": "title", "negative_ids": ["p1", "p0"]
    }  # fmt: skip


def test_the_removed_data_set_has_a_row_for_each_question():
    rows = removed_dataset(REMOVED)
    assert len(rows) == 4
    assert rows[3] == {"question": "Q3?", "passage_id": "p1", "reason": "malformed", "detail": "found 3"}


def test_nothing_gives_empty_tables_with_their_columns():
    nothing = Checked((), ())
    empty = Mined(np.empty((0, 2), dtype=np.int64), pd.DataFrame(), [])
    tables = [pair_examples([]), removed_examples([]), candidate_examples(DATA, []), example_texts(nothing)]
    assert [table.shape for table in [*tables, rejected_texts(nothing)]] == [(0, 4), (0, 4), (0, 7), (0, 4), (0, 4)]
    for rows, columns in (
        (pairs_dataset(DATA, [], empty), ["query_id", "passage_id", "source", "negative_ids"]),
        (removed_dataset([]), ["question", "passage_id", "reason", "detail"]),
    ):
        assert (len(rows), rows.column_names) == (0, columns)


def test_an_empty_data_set_has_the_types_of_a_full_one():
    empty = Mined(np.empty((0, 2), dtype=np.int64), pd.DataFrame(), [])
    assert pairs_dataset(DATA, [], empty).features == pairs_dataset(DATA, PAIRS, MINED).features
    assert removed_dataset([]).features == removed_dataset(REMOVED).features
