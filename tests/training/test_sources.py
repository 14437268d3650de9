from dataclasses import replace

import pytest

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.errors import RagbenchError
from ragbench.generation.generate import Generator
from ragbench.retrieval.retrieve import Retriever
from ragbench.training.sources import SOURCES, Gathered, Sources, gather

BM25 = Retriever("bm25")
NOBODY = Generator("none")
HELD_OUT = "Before the nightly download I want to know how many bytes of room are left on the drive, can I?"
COPY = HELD_OUT.upper().replace(",", " -")
ASKED = "What becomes of symbolic links when I duplicate my project?"
WRITTEN = "Does a ringing telephone wake the hamster in the cupboard?"


def collection(**more: str) -> Collection:
    """Return a corpus with two labelled documents, one of them held out, and the questions `more` for training."""
    rows = [
        ("copytree", "How to copy trees", "Copy a whole folder. Symbolic links are kept as they are.", "A"),
        ("usage", "How disks fill up", "Tell how much is taken. The rest of the drive is free.", "B"),
        ("hamster", "Keeping pets in cupboards", "A hamster sleeps through ringing. Feed it once a day.", "C"),
        ("paint", "Mixing all the colours", "Red and blue give purple together. Stir them for a while.", "D"),
    ]
    queries = [Query("q1", ASKED), Query("q2", HELD_OUT), *(Query(name, text) for name, text in more.items())]
    qrels = {"train": {"q1": {"copytree": 1}, **{name: {"paint": 1} for name in more}}, "test": {"q2": {"usage": 1}}}
    return Collection("shop", corpus_from_rows(rows), {query.id: query for query in queries}, qrels)


def counts(gathered: Gathered) -> dict[str, int]:
    table = gathered.counts()
    return dict(zip(table["source"], table["pairs"].tolist(), strict=True))


@pytest.fixture
def writer(chat_server) -> Generator:
    """A generator behind a real server, which asks the same two questions about every passage."""
    url, _ = chat_server(lambda _: f"1. {WRITTEN}\n2. {HELD_OUT}")
    return Generator("endpoint", "m", endpoint=url)


@pytest.mark.parametrize("names", [SOURCES, *((name,) for name in SOURCES), ("sentence", "labelled")])
def test_each_source_is_switched_on_by_name_and_counted(writer, names):
    gathered = gather(collection(), Sources(names), writer, BM25)
    every = {"labelled": 1, "synthetic": 1, "title": 2, "sentence": 2}
    if "labelled" not in names:  # then nothing is covered yet
        every |= {"title": 3, "sentence": 3}
    assert counts(gathered) == {name: every[name] if name in names else 0 for name in SOURCES}
    assert {pair.source for pair in gathered.pairs} == set(names)


def test_no_pair_comes_from_a_document_that_is_held_out(writer):
    gathered = gather(collection(), Sources(SOURCES), writer, BM25)
    assert "usage" not in {pair.passage_id for pair in gathered.pairs}
    assert len({pair.query_id for pair in gathered.pairs}) == len(gathered.pairs)


def test_a_planted_test_question_is_removed_from_the_labelled_ones_and_listed():
    gathered = gather(collection(q3=COPY, q4="Which two colours give purple?"), Sources(("labelled",)), NOBODY, BM25)
    assert [pair.query_id for pair in gathered.pairs] == ["q1", "q4"]
    [removed] = gathered.removed
    assert (removed.text, removed.passage_id, removed.reason) == (COPY, "paint", "leak")
    assert removed.detail == f"labelled, copies q2: '{HELD_OUT}'"


def test_a_planted_test_question_is_removed_from_the_written_ones_and_listed(writer):
    gathered = gather(collection(), Sources(("synthetic",)), writer, BM25)
    assert [pair.question for pair in gathered.pairs] == [WRITTEN]
    leaks = [removed for removed in gathered.removed if removed.reason == "leak"]
    assert [removed.text for removed in leaks] == [HELD_OUT]
    assert gathered.removed == gathered.written.removed
    assert gathered.funnel()["left"].tolist()[0] == len(gathered.pairs) + len(gathered.removed)


def test_a_title_that_copies_a_test_question_is_removed_too():
    rows = [("a", "Copying of whole folder trees", "All files are copied with them.", "A"), ("b", "", "Bytes.", "B")]
    query = Query("q1", "copying of whole folder trees?")
    data = Collection("c", corpus_from_rows(rows), {"q1": query}, {"test": {"q1": {"b": 1}}})
    with pytest.raises(RagbenchError, match="gave no training pair"):
        gather(data, Sources(("title",)), NOBODY, BM25)


def test_the_passages_of_each_source_are_limited_drawn_by_the_seed_and_reproducible():
    rows = [(f"p{n}", f"Title of passage number {n}", f"This is text number {n}.", f"d{n}") for n in range(40)]
    data = Collection("c", corpus_from_rows(rows), {}, {})
    some = Sources(("title",), structural_passages=5, seed=1)
    drawn = [gather(data, each, NOBODY, BM25).pairs for each in (some, some, replace(some, seed=2))]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(pairs) for pairs in drawn] == [5, 5, 5]


def test_a_collection_without_labels_gives_pairs_of_its_own_text():
    bare = Collection("bare", collection().corpus, {}, {})
    gathered = gather(bare, Sources(SOURCES), NOBODY, BM25)
    assert counts(gathered) == {"labelled": 0, "synthetic": 0, "title": 4, "sentence": 4}
    assert set(gathered.written.silent) == set(bare.corpus["_id"]) and gathered.removed == []


@pytest.mark.parametrize("sources", [Sources(()), Sources(("synthetic",)), Sources(("title",), structural_passages=0)])
def test_no_pair_at_all_is_an_error_that_says_what_to_do(sources):
    with pytest.raises(RagbenchError, match=r"'shop' gave no training pair.*train split.*prep_sources \(labelled"):
        gather(collection(), sources, NOBODY, BM25)


def test_an_unknown_source_is_an_error_that_lists_the_known_ones():
    with pytest.raises(RagbenchError, match=r"prep_sources has 'clicks'.*labelled, synthetic, title, sentence"):
        gather(collection(), Sources(("labelled", "clicks")), NOBODY, BM25)
