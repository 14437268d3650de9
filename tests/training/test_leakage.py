from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.beir import read_collection
from ragbench.collection.embedded import embedded_collection
from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.training.leakage import held_out_questions, leaking_queries, leaks, near_copies, repeats
from ragbench.training.pairs import Pair, labelled_pairs

DRIVE = "Before the nightly download I want to know how many bytes of room are left on the drive."
OTHERS = [
    "How do I make a function that remembers its last results?",
    "My script must end with the code 3 when a file is missing.",
    "Which call tells me the name of the computer?",
]
COPIES = [
    DRIVE,
    DRIVE.upper(),
    f"  {DRIVE.rstrip('.')} ?!",
    DRIVE.replace(" ", "\n"),
    DRIVE.replace("nightly", "weekly"),
    DRIVE.replace("the drive", "a disk"),
    "I want to know how many bytes of room are left on the drive before the nightly download!",
]
texts = st.lists(st.text(alphabet="ab cD?.é ", max_size=12), max_size=8)


def pair(question: str) -> Pair:
    return Pair("x", question, "p1", "Cats Cats sleep all day.", "synthetic")


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_found_among_others(copy):
    assert near_copies([*OTHERS, copy], [OTHERS[2], DRIVE]) == [None, None, 0, 1]


@pytest.mark.parametrize(
    "other",
    [
        "How many bytes does the nightly download have?",
        "Before the nightly backup I want to know whether a file of that name is left in the folder.",
        "How much free space is there on my disk?",  # a paraphrase: beyond what words can tell
        "",
        "???",
    ],
)
def test_another_question_is_no_copy(other):
    assert near_copies([other], [DRIVE, *OTHERS]) == [None]


def test_questions_of_one_pattern_about_different_things_are_no_copies():
    pattern = "What is the purpose of the {} function?"
    questions = [pattern.format(name) for name in ("copytree", "rmtree", "namedtuple", "urlopen")]
    assert repeats([*questions, pattern.format("rmtree").lower()]) == [None, None, None, None, 1]


def test_the_most_similar_copy_is_named():
    assert near_copies([DRIVE], [DRIVE.replace("nightly", "weekly"), DRIVE]) == [1]


def test_nothing_copies_nothing():
    assert near_copies([], [DRIVE]) == [] and near_copies([DRIVE], []) == [None] and repeats([]) == []


@settings(deadline=None)
@given(texts)
def test_a_text_is_a_copy_of_itself(found):
    assert None not in near_copies(found, found)


@settings(deadline=None)
@given(texts, texts, st.randoms())
def test_what_is_found_depends_on_no_order(found, against, random):
    both = dict(zip(found, near_copies(found, against), strict=True))
    shuffled, other = random.sample(found, len(found)), random.sample(against, len(against))
    assert [copy is None for copy in near_copies(shuffled, other)] == [both[text] is None for text in shuffled]


@settings(deadline=None)
@given(texts)
def test_a_repeat_names_an_earlier_text_that_is_no_repeat(found):
    places = repeats(found)
    assert all(place is None or (place < row and places[place] is None) for row, place in enumerate(places))
    assert all(places[row] is not None for row, text in enumerate(found) if text in found[:row])


def test_more_texts_than_are_compared_at_once(monkeypatch):
    many = [f"{text} number {n} of n{n}" for n in range(7) for text in (DRIVE, *OTHERS)]
    whole = near_copies(many, COPIES), repeats(many)
    monkeypatch.setattr("ragbench.training.leakage._CELLS", 20)
    assert (near_copies(many, COPIES), repeats(many)) == whole


def test_pairs_that_ask_a_held_out_question_are_named_with_it(toy_folder: Path):
    toy = read_collection(toy_folder)
    pairs = [*labelled_pairs(toy), pair("who barks, and who swims"), pair("How old do HORSES get"), pair("Who flies?")]
    assert held_out_questions(toy) == {"q2": "Who barks and who swims?", "q3": "How old do horses get?"}
    assert leaks(pairs, toy) == {1: "q2", 2: "q3"}


def test_every_question_of_the_embedded_collection_is_one_of_its_own():
    collection = embedded_collection()
    assert leaks(labelled_pairs(collection), collection) == {}
    assert set(repeats([query.text for query in collection.queries.values()])) == {None}


def splits(**questions: list[str]) -> Collection:
    """Return a collection with the questions of each split; an id is the split and a number."""
    ids = {split: {f"{split}{n}": text for n, text in enumerate(texts)} for split, texts in questions.items()}
    queries = {name: Query(name, text) for named in ids.values() for name, text in named.items()}
    qrels = {split: {name: {"p1": 1} for name in named} for split, named in ids.items()}
    return Collection("c", corpus_from_rows([("p1", "", "text", "d")]), queries, qrels)


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("held_out", ["dev", "test", "ood", "extra"])
def test_a_training_question_that_copies_one_of_another_split_leaks(copy, held_out):
    data = splits(**{"train": [OTHERS[0], copy], held_out: [OTHERS[1], DRIVE]})
    assert leaking_queries(data, ["train"]) == {"train1"}


def test_a_dev_question_leaks_if_it_copies_a_test_question_but_not_for_training_or_its_own_split():
    data = splits(train=[OTHERS[0]], dev=[OTHERS[0], DRIVE, OTHERS[1], OTHERS[1]], test=[DRIVE.upper(), OTHERS[2]])
    assert leaking_queries(data, ["dev"]) == {"dev1"}
    assert leaking_queries(data, ["train", "dev"]) == {"train0", "dev1"}
    assert leaking_queries(data, ["test"]) == {"test0"}


@pytest.mark.parametrize("names", [[], ["gone"], ["train"]])
def test_nothing_leaks_where_there_is_no_split_or_no_other(names):
    assert leaking_queries(splits(train=[DRIVE, DRIVE]), names) == frozenset()
    assert leaking_queries(Collection("bare", splits().corpus, {}, {}), names) == frozenset()


def test_no_question_of_the_embedded_collection_leaks_into_another_split():
    collection = embedded_collection()
    assert leaking_queries(collection, list(collection.qrels)) == frozenset()
