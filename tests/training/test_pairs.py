import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.schema import Collection, Passage, Query, corpus_from_rows, corpus_ids
from ragbench.errors import RagbenchError
from ragbench.training.pairs import Pair, labelled_pairs, structural_pairs, trainable_rows, uncovered

ROWS = [
    ("a1", "Trees", "Copy them.", "A"),
    ("a2", "", "Move them.", "A"),
    ("b1", "Disks", "Count bytes.", "B"),
    ("b2", "Disks", "Count files.", "B"),
    ("c1", "Clocks", "Tell the time.", "C"),
    ("d1", "Mail", "Send letters.", "D"),
    ("e1", "Paint", "Mix colours.", "E"),
    ("f1", "Sound", "Play notes.", "F"),
    ("f2", "Sound", "Record notes.", "F"),
]
QRELS = {
    "train": {"q1": {"a1": 1, "e1": 0, "a2": 2}, "q2": {"f1": 1}},
    "dev": {"q3": {"c1": 1}},
    "test": {"q4": {"b1": 1, "e1": 0}, "q5": {}},
    "ood": {"q6": {"d1": 3}},
}


def collection(qrels=QRELS) -> Collection:
    names = [name for split in QRELS.values() for name in split]
    return Collection("c", corpus_from_rows(ROWS), {name: Query(name, f"What of {name}?") for name in names}, qrels)


def pair(passage_id: str) -> Pair:
    return Pair("x", "What?", passage_id, "text", "labelled")


def structural(title: str, text: str, *kinds: str) -> list[tuple[str, str]]:
    return [(made.question, made.positive) for made in structural_pairs([Passage("p", title, text, "d")], kinds)]


def test_every_gold_passage_of_a_question_gives_a_pair_with_its_title():
    assert labelled_pairs(collection()) == [
        Pair("q1", "What of q1?", "a1", "Trees Copy them.", "labelled"),
        Pair("q1", "What of q1?", "a2", "Move them.", "labelled"),
        Pair("q2", "What of q2?", "f1", "Sound Play notes.", "labelled"),
    ]
    assert [made.passage_id for made in labelled_pairs(collection(), "test")] == ["b1"]


def test_a_split_that_is_not_there_gives_no_pair():
    assert labelled_pairs(collection({})) == []
    assert labelled_pairs(collection({"test": QRELS["test"]})) == []


def test_whole_documents_with_gold_of_another_split_than_train_are_closed():
    data = collection()
    ids = corpus_ids(data).take(trainable_rows(data)).to_pylist()
    assert ids == ["a1", "a2", "e1", "f1", "f2"]  # b2 shares the document of b1; e1 is judged and not relevant


def test_without_labels_every_passage_may_give_questions():
    assert trainable_rows(collection({})).tolist() == list(range(len(ROWS)))


@given(st.lists(st.tuples(st.sampled_from("ABCD"), st.sampled_from(["train", "dev", "test", "ood", ""])), min_size=1))
@settings(deadline=None)
def test_no_document_is_open_that_holds_gold_of_a_held_out_split(passages):
    rows = [(f"p{n}", "", "text", document) for n, (document, _) in enumerate(passages)]
    qrels: dict[str, dict[str, dict[str, int]]] = {}
    for n, (_, split) in enumerate(passages):
        if split:
            qrels.setdefault(split, {})[f"q{n}"] = {f"p{n}": 1}
    data = Collection("c", corpus_from_rows(rows, batch_size=2), {}, qrels)
    closed = {document for document, split in passages if split not in ("train", "")}
    expected = [n for n, (document, _) in enumerate(passages) if document not in closed]
    assert trainable_rows(data).tolist() == expected


def test_uncovered_passages_are_open_and_in_no_pair():
    found = uncovered(collection(), [pair("a1"), pair("f2"), pair("b2")], limit=99, seed=0)
    assert [passage.id for passage in found] == ["a2", "e1", "f1"]
    assert found[1] == Passage("e1", "Paint", "Mix colours.", "E")


def test_the_drawing_of_uncovered_passages_is_reproducible_and_depends_on_the_seed():
    data = Collection("c", corpus_from_rows((f"p{n}", "", "text", f"d{n}") for n in range(100)), {}, {})
    drawn = [[passage.id for passage in uncovered(data, [], 10, seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(set(ids)) for ids in drawn] == [10, 10, 10]
    assert uncovered(data, [], 0, 1) == []


def test_a_title_asks_for_the_text_and_a_first_sentence_for_the_title_and_the_rest():
    text = "Folders are copied with all files inside. Links stay links. Errors are collected."
    found = structural_pairs([Passage("p", "How to copy trees", text, "d")], ["title", "sentence"])
    rest = "How to copy trees Links stay links. Errors are collected."
    assert found == [
        Pair("title:p", "How to copy trees", "p", text, "title"),
        Pair("sentence:p", "Folders are copied with all files inside.", "p", rest, "sentence"),
    ]


def test_a_title_at_the_head_of_the_text_is_not_left_in_the_positive():
    text = "How to copy trees\nFolders are copied with all files."
    assert structural("How to copy trees", text, "title") == [
        ("How to copy trees", "Folders are copied with all files.")
    ]
    assert structural(" How to copy trees ", text, "sentence") == [
        ("How to copy trees", "Folders are copied with all files.")
    ]


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("Copy the trees", "Folders are copied with all files."),
        ("How to copy trees", "Only three words."),
        ("How to copy trees", "How to copy trees"),
        ("", "Folders are copied with all files."),
        ("How to copy trees", ""),
    ],
)
def test_too_short_a_title_or_text_gives_no_title_pair(title, text):
    assert structural(title, text, "title") == []


@pytest.mark.parametrize("text", ["One. Folders are copied with all files.", "Folders are copied with all files.", ""])
def test_too_short_or_lone_a_sentence_gives_no_sentence_pair(text):
    assert structural("How to copy trees", text, "sentence") == []


@given(st.text(alphabet="aB. \n", max_size=40), st.text(alphabet="aB. \n", max_size=40))
@settings(deadline=None)
def test_a_structural_question_and_its_positive_have_words_enough(title, text):
    for question, positive in structural(title, text, "title", "sentence"):
        assert min(len(question.split()), len(positive.split())) >= 4


def test_no_kind_gives_no_pair_and_an_unknown_one_names_the_parameter():
    assert structural("How to copy trees", "Folders are copied with all files.") == []
    with pytest.raises(RagbenchError, match=r"prep_sources has 'page'; made from the corpus are title and sentence"):
        structural("", "", "title", "page")


def test_rows_are_those_of_the_corpus():
    assert trainable_rows(collection()).dtype == np.int64
