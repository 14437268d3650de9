import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from ragbench.collection.beir import read_collection
from ragbench.collection.overview import passage_lengths, split_overview
from ragbench.collection.schema import (
    Collection,
    Passage,
    Query,
    corpus_from_rows,
    corpus_ids,
    needed_groups,
    passage_texts,
    passages,
    rows_of,
    split_queries,
)
from ragbench.errors import RagbenchError


def numbered(count, batch_size=10_000):
    rows = ((f"p{i}", f"title {i}", f"text {i}", f"d{i // 10}") for i in range(count))
    return Collection("numbered", corpus_from_rows(rows, batch_size), {}, {})


def test_the_corpus_is_backed_by_arrow_and_keeps_order_across_batches():
    collection = numbered(2_503, batch_size=100)
    assert isinstance(collection.corpus, Dataset)
    assert isinstance(corpus_ids(collection), pa.ChunkedArray)
    assert corpus_ids(collection).to_pylist() == [f"p{i}" for i in range(2_503)]
    assert collection.corpus[2_502] == {
        "_id": "p2502",
        "title": "title 2502",
        "text": "text 2502",
        "document_id": "d250",
    }


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200])
def test_no_row_is_lost_at_the_edge_of_a_batch(count):
    assert len(numbered(count, batch_size=100).corpus) == count


def test_building_the_corpus_never_holds_more_than_a_batch_as_objects():
    rows = ((f"p{i}", "", f"{i} " + "x" * 500, "d") for i in range(20_000))
    tracemalloc.start()
    try:
        corpus = corpus_from_rows(rows, batch_size=500)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(corpus) == 20_000
    assert peak < 3_000_000  # 10 million characters in all


def test_rows_are_found_in_bulk_in_the_order_asked_for():
    rows = rows_of(numbered(1_000, batch_size=64), ["p999", "p0", "p500", "p0"])
    assert rows.tolist() == [999, 0, 500, 0]
    assert rows.dtype == np.int64
    assert rows_of(numbered(3), []).tolist() == []


def test_an_unknown_passage_is_named_with_its_collection():
    with pytest.raises(RagbenchError, match="'numbered' has no passage 'p7', 'other'") as caught:
        rows_of(numbered(5), ["p1", "p7", "p2", "other"])
    assert "p1'" not in str(caught.value)


def test_a_thousand_unknown_passages_make_a_short_message():
    with pytest.raises(RagbenchError) as caught:
        rows_of(numbered(5), [f"unknown{i}" for i in range(1_000)])
    assert len(str(caught.value)) < 200


def test_passages_come_by_id_each_once():
    found = passages(numbered(50, batch_size=7), ["p30", "p4", "p30"])
    assert found == {
        "p30": Passage("p30", "title 30", "text 30", "d3"),
        "p4": Passage("p4", "title 4", "text 4", "d0"),
    }
    assert list(found) == ["p30", "p4"]


def test_the_text_of_a_passage_is_title_space_text():
    assert passage_texts(numbered(3)).to_pylist() == ["title 0 text 0", "title 1 text 1", "title 2 text 2"]
    assert passage_texts(numbered(9, batch_size=2), [8, 0, 8]).to_pylist() == [
        "title 8 text 8", "title 0 text 0", "title 8 text 8",
    ]  # fmt: skip


def test_a_passage_without_title_or_text_has_no_stray_space():
    rows = [("a", "", "text", "d"), ("b", "title", "", "d"), ("c", "", "", "d"), ("d", " t ", "\n x\u00a0\n", "d")]
    collection = Collection("c", corpus_from_rows(rows), {}, {})
    assert passage_texts(collection).to_pylist() == ["text", "title", "", "t  \n x"]


@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), min_size=1, max_size=8))
def test_one_passage_and_the_whole_corpus_agree_on_the_text(pairs):
    rows = [(f"p{i}", title, text, "d") for i, (title, text) in enumerate(pairs)]
    collection = Collection("c", corpus_from_rows(rows, batch_size=3), {}, {})
    one_by_one = passages(collection, [row[0] for row in rows])
    assert passage_texts(collection).to_pylist() == [passage.full_text for passage in one_by_one.values()]


@pytest.mark.parametrize(
    ("tags", "needs", "gold", "expected"),
    [
        ((), (), {"a": 1, "b": 2}, [{"a", "b"}]),
        (("multi",), (), {"a": 1, "b": 2}, [{"a"}, {"b"}]),
        (("multi",), (("a", "b"), ("c",)), {"a": 1, "b": 1, "c": 1}, [{"a", "b"}, {"c"}]),
        ((), (), {"a": 0, "b": 1, "c": -1}, [{"b"}]),
        (("multi",), (), {"a": 0, "b": 1}, [{"b"}]),
        ((), (), {"a": 0}, []),
        (("unanswerable",), (), {}, []),
    ],
)
def test_what_an_answer_needs(tags, needs, gold, expected):
    assert [set(group) for group in needed_groups(Query("q", "?", tags=tags, needs=needs), gold)] == expected


def test_a_query_is_answerable_unless_its_tag_says_otherwise():
    assert Query("q", "?", tags=("lay",)).answerable
    assert not Query("q", "?", tags=("lay", "unanswerable")).answerable


def test_the_queries_of_a_split_come_in_the_order_of_its_qrels(toy_folder):
    collection = read_collection(toy_folder)
    assert [query.id for query in split_queries(collection, "test")] == ["q2", "q3"]
    assert [query.text for query in split_queries(collection, "train")] == ["What do cats do all day?"]


def test_a_split_that_is_not_there_is_an_error_that_lists_the_others(toy_folder):
    with pytest.raises(RagbenchError, match="no split 'dev'; it has: train, test"):
        split_queries(read_collection(toy_folder), "dev")


def test_the_overview_counts_each_split_and_the_sum(toy_folder):
    table = split_overview(read_collection(toy_folder)).set_index("split")
    columns = ["questions", "with answer", "unanswerable", "multi", "gold passages"]
    assert table.loc["train", columns].tolist() == [1, 1, 0, 0, 1]
    assert table.loc["test", columns].tolist() == [2, 2, 1, 1, 2]
    assert table.loc["all", columns].tolist() == [3, 3, 1, 1, 3]
    assert list(table.index) == ["train", "test", "all"]


def test_passage_lengths_are_characters_of_title_and_text():
    rows = [("a", "Füße", "日本", "d"), ("b", "", "", "d"), ("c", "", "😀", "d")]
    assert passage_lengths(Collection("c", corpus_from_rows(rows), {}, {})).tolist() == [7, 0, 1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_collection_without_labels_says_what_can_be_done_with_it(split):
    with pytest.raises(RagbenchError, match=r"'numbered' has no labelled.*--stages 02_data_prep,03_retriever"):
        split_queries(numbered(3), split)


def test_the_overview_of_a_collection_without_labels_counts_nothing():
    table = split_overview(numbered(3))
    assert table["split"].tolist() == ["all"]
    assert table.drop(columns="split").iloc[0].tolist() == [0] * 5
