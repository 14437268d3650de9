from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.schema import Collection, corpus_from_rows
from ragbench.errors import RagbenchError
from ragbench.training.pairs import Pair
from ragbench.training.rows import read_rows, training_rows, write_parquet

DATA = Collection("c", corpus_from_rows((f"p{n}", "Title", f"text {n}", "d") for n in range(6)), {}, {})
PAIRS = [Pair("q0", "Which?", "p0", "Title text 0", "labelled"), Pair("t1", "What?", "p1", "the rest", "title")]
NEGATIVES = np.array([[2, 3, 4], [5, 0, 2]])
TEACHER = np.array([[0.9, 0.3, 0.2, 0.1], [0.8, 0.4, 0.5, 0.0]])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_parquet(training_rows(DATA, PAIRS, NEGATIVES, TEACHER), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_the_columns_are_what_sentence_transformers_trains_on():
    rows = training_rows(DATA, PAIRS, NEGATIVES)
    assert rows.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert rows[1] == {
        "anchor": "What?",
        "positive": "the rest",
        "negative_1": "Title text 5",
        "negative_2": "Title text 0",
        "negative_3": "Title text 2",
    }


def test_a_teachers_scores_come_last():
    rows = training_rows(DATA, PAIRS, NEGATIVES, TEACHER)
    assert rows.column_names[-1] == "label"
    assert rows["label"][1] == [0.8, 0.4, 0.5, 0.0]


def test_parquet_keeps_the_rows_and_leaves_no_other_file(path):
    assert read_rows(path, 3, "kl").to_list() == training_rows(DATA, PAIRS, NEGATIVES, TEACHER).to_list()
    assert [file.name for file in path.parent.glob("*.parquet*")] == ["rows.parquet"]


@pytest.mark.parametrize("negatives", [0, 1, 2, 3])
def test_fewer_negatives_are_the_first_and_the_teachers_scores_are_cut_to_them(path, negatives):
    rows = read_rows(path, negatives, "margin_mse")
    assert rows.column_names == ["anchor", "positive", *(f"negative_{n + 1}" for n in range(negatives)), "label"]
    assert rows["label"][:] == TEACHER[:, : negatives + 1].tolist()


def test_a_loss_without_a_teacher_sees_no_scores(path):
    assert read_rows(path, 1, "shared").column_names == ["anchor", "positive", "negative_1"]


def test_too_few_negatives_are_an_error_that_says_what_to_run(path):
    with pytest.raises(RagbenchError, match=r"rows\.parquet has no column negative_4\. Run 02_data_prep.*at least 5"):
        read_rows(path, 5, "shared")


def test_no_teachers_scores_are_an_error_that_says_what_to_run(tmp_path):
    write_parquet(training_rows(DATA, PAIRS, NEGATIVES), tmp_path / "rows.parquet")
    with pytest.raises(RagbenchError, match=r"no column label\. Run 02_data_prep with prep_teacher"):
        read_rows(tmp_path / "rows.parquet", 1, "kl")
    assert len(read_rows(tmp_path / "rows.parquet", 1, "mnr")) == 2


texts = st.text(max_size=8)


@given(st.lists(st.tuples(texts, texts, st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_any_text_survives_the_file(tmp_path_factory, made):
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    pairs = [Pair("q", question, "p0", positive, "labelled") for question, positive, _, _ in made]
    rows = training_rows(DATA, pairs, np.array([each[2:] for each in made]))
    write_parquet(rows, path)
    assert read_rows(path, 2, "shared").to_list() == rows.to_list()
