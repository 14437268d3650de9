import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.collection.splits import with_dev

DOCUMENTS = 40


def collection(gold: dict[str, list[int]], **splits) -> Collection:
    corpus = corpus_from_rows((f"p{n}", "", "text", f"d{n // 2}") for n in range(2 * DOCUMENTS))
    queries = {name: Query(name, name) for name in gold}
    train = {name: {f"p{n}": 1 for n in numbers} for name, numbers in gold.items()}
    return Collection("made up", corpus, queries, {"train": train} | splits)


def documents(whole: Collection, split: str) -> set[int]:
    return {int(name[1:]) // 2 for gold in whole.qrels[split].values() for name in gold}


@given(st.lists(st.lists(st.integers(0, 2 * DOCUMENTS - 1), min_size=0, max_size=2, unique=True), max_size=80))
def test_no_question_is_lost_and_no_document_is_gold_in_both(gold):
    whole = collection({f"q{n}": numbers for n, numbers in enumerate(gold)})
    found = with_dev(whole)
    if "dev" not in found.qrels:
        assert found is whole
        return
    train, dev = found.qrels["train"], found.qrels["dev"]
    assert train | dev == whole.qrels["train"] and not train.keys() & dev.keys() and train and dev
    assert not documents(found, "train") & documents(found, "dev")


def test_a_tenth_is_held_out_unanswerable_questions_too_and_always_the_same():
    whole = collection({f"q{n}": [2 * (n % DOCUMENTS)] for n in range(80)} | {f"none{n}": [] for n in range(20)})
    found = with_dev(whole).qrels["dev"]
    assert 8 <= sum(bool(gold) for gold in found.values()) <= 9
    assert sum(not gold for gold in found.values()) == 2
    assert found == with_dev(whole).qrels["dev"]


@pytest.mark.parametrize("gold", [{"a": [0], "b": [0, 2], "c": [2]}, {}, {"a": []}])
def test_questions_that_hang_together_stay_together(gold):
    whole = collection(gold)
    assert with_dev(whole) is whole


def test_a_collection_with_a_dev_split_or_without_train_stays_as_it_is():
    labelled = collection({f"q{n}": [2 * n] for n in range(20)}, dev={})
    assert with_dev(labelled) is labelled
    bare = Collection("bare", labelled.corpus, {}, {})
    assert with_dev(bare) is bare
