from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.schema import Collection, Query, corpus_from_rows, passages
from ragbench.errors import RagbenchError
from ragbench.generation.generate import Generator
from ragbench.retrieval.retrieve import Retriever
from ragbench.training.pairs import Pair
from ragbench.training.synthetic import (
    QUESTION_TOKENS,
    REASONS,
    Candidate,
    Removed,
    funnel,
    parse_questions,
    sift,
    synthetic_pairs,
    write_questions,
)

BM25 = Retriever("bm25")
COPY = "Recursively copy a whole folder with everything in it to a new place. Symbolic links are kept as they are."
GOOD = "What becomes of symbolic links when I duplicate my project?"
LABELLED = "Is there one call that puts a second version of my project beside the first?"
HELD_OUT = "Before the nightly download I want to know how many bytes of room are left on the drive, can I?"
OUT_OF_DOMAIN = "Which colour comes closest to ripe tomatoes, red or pink?"


@pytest.fixture
def collection() -> Collection:
    colours = ["red", "green", "blue", "black", "white", "brown", "pink", "grey", "gold", "amber", "lime", "plum"]
    rows = [
        ("copytree", "shutil.copytree", COPY, "shutil"),
        ("rmtree", "shutil.rmtree", "Delete a folder and all files inside. Errors go to a callback.", "shutil"),
        ("usage", "shutil.disk_usage", "Tell how much of a drive is taken and free.", "disk"),
        *((colour, f"paint.{colour}", f"This function returns the value of {colour}.", "paint") for colour in colours),
    ]
    queries = [Query("q1", LABELLED), Query("q2", HELD_OUT), Query("q3", OUT_OF_DOMAIN)]
    qrels = {"train": {"q1": {"copytree": 1}}, "test": {"q2": {"usage": 1}}, "ood": {"q3": {"red": 1}}}
    return Collection("shop", corpus_from_rows(rows), {query.id: query for query in queries}, qrels)


def reasons(collection: Collection, *texts: str, passage_id: str = "copytree") -> list[str | None]:
    """Return by which filter each question about a passage falls; None if it is kept."""
    filtered = sift(collection, [Candidate(passage_id, n, text) for n, text in enumerate(texts, start=1)], BM25)
    removed = {each.text: each.reason for each in filtered.removed}
    return [removed.get(text) for text in texts]


@pytest.mark.parametrize(
    ("reply", "questions"),
    [
        ("1. How do I copy it?\n2. How do I move it?", ["How do I copy it?", "How do I move it?"]),
        ("1) How?\n(2) Why?\n3: When?", ["How?", "Why?", "When?"]),
        ("- How?\n* Why?\n• When?", ["How?", "Why?", "When?"]),
        ('"How do I copy it?"\n“And why?”\n`Where?`', ["How do I copy it?", "And why?", "Where?"]),
        ("**Question 1:** How?\nQ2: Why?\nQuestion 3. When?", ["How?", "Why?", "When?"]),
        ("1. **How do I copy it?**\n", ["How do I copy it?"]),
        ("Sure! Here are two questions a user might ask: What is it?\n\nWhere is it?", ["What is it?", "Where is it?"]),
        ("What is it? It is a file. Where is it? In a folder.", ["What is it?", "Where is it?"]),
        ("Question: What is it? Answer: A file.", ["What is it?"]),
        ("My script crashes at night. How do I find out why?", ["My script crashes at night. How do I find out why?"]),
        ("Who matches report_??.csv?", ["Who matches report_??.csv?"]),
        ('"r+" and "w+" as modes, what do they do?', ['"r+" and "w+" as modes, what do they do?']),
        ("--verbose does what?", ["--verbose does what?"]),
        ("3.5 is what?", ["3.5 is what?"]),
        ("How?\nHow?\nHow?", ["How?"]),
        ("这是什么？", ["这是什么?"]),
        ("How do I copy a fo", []),
        ("?\n1. ?\n???", []),
        ("", []),
    ],
)
def test_a_reply_is_taken_apart_into_its_questions(reply, questions):
    assert parse_questions(reply) == questions


@settings(deadline=None)
@given(st.text() | st.text(alphabet="aQ1 .:?!)\n\"*-'", max_size=60) | st.from_regex(r"(Questions? ?1?[:.] ?.*\n)*"))
def test_whatever_the_reply_its_questions_are_distinct_and_end_with_a_question_mark(reply):
    questions = parse_questions(reply)
    assert all(text.endswith("?") and "\n" not in text for text in questions)
    assert len(set(questions)) == len(questions)


def test_a_question_in_a_users_words_is_kept_as_a_pair(collection):
    filtered = sift(collection, [Candidate("copytree", 2, GOOD)], BM25)
    assert filtered.kept == [
        Pair("synthetic:copytree:2", GOOD, "copytree", f"shutil.copytree {COPY}", "synthetic"),
    ]
    assert filtered.removed == []


@pytest.mark.parametrize(
    "text",
    [
        "Copy folders how?",
        f"{'very ' * 40}many words?",
        "How do I copy a folder? And how do I delete one?",
        "How to copy a whole folder",
        "What does the passage say about symbolic links?",
    ],
)
def test_what_is_not_one_question_of_a_user_is_malformed(collection, text):
    assert reasons(collection, text) == ["malformed"]


@pytest.mark.parametrize(
    "text",
    [
        "What does this function do?",
        "What is the purpose of this text?",
        "What's the value that the function returns?",  # words that are common in this corpus
        "Why can't I use this one?",
        "Can you give me an example?",
    ],
)
def test_a_question_that_only_points_names_nothing(collection, text):
    assert reasons(collection, text) == ["names nothing"]


@pytest.mark.parametrize(
    "text",
    [
        "Recursively copy a whole folder with everything in it to a new place?",
        "Does it recursively copy the whole folder with everything in it to a new PLACE?",
        "What is the purpose of shutil.copytree?",
        "What value does the copytree function return?",
    ],
)
def test_a_question_that_copies_the_passage_or_just_its_title_gives_the_answer_away(collection, text):
    assert reasons(collection, text) == ["gives the answer away"]


def test_a_title_beside_something_to_ask_for_is_kept(collection):
    assert reasons(collection, "Does copytree keep symbolic links?") == [None]


def test_copies_of_earlier_and_of_labelled_questions_are_duplicates(collection):
    texts = [GOOD, GOOD.upper().replace("?", " ?"), GOOD, LABELLED, LABELLED.replace("beside", "after")]
    removed = sift(collection, [Candidate("copytree", n, text) for n, text in enumerate(texts)], BM25).removed
    assert [each.reason for each in removed] == ["duplicate"] * 4
    assert [each.detail for each in removed] == [f"copies '{GOOD}'"] * 2 + [f"copies '{LABELLED}'"] * 2


@pytest.mark.parametrize(
    "text", [HELD_OUT, HELD_OUT.upper(), HELD_OUT.replace(",", " -"), HELD_OUT.replace("bytes", "MB")]
)
def test_a_planted_test_question_is_a_leak_that_is_named(collection, text):
    [removed] = sift(collection, [Candidate("usage", 1, text)], BM25).removed
    assert removed == Removed(text, "usage", "leak", f"copies q2: '{HELD_OUT}'")


def test_the_out_of_domain_split_is_held_out_too(collection):
    assert reasons(collection, OUT_OF_DOMAIN.lower().replace(",", ""), passage_id="red") == ["leak"]


def test_a_question_that_does_not_lead_back_to_its_passage_fails_the_round_trip(collection):
    text = "What if an error turns up while I delete a folder and all files?"
    assert reasons(collection, text, passage_id="rmtree") == [None]
    [removed] = sift(collection, [Candidate("usage", 1, text)], BM25, round_trip_depth=1).removed
    assert removed == Removed(text, "usage", "round trip", "found rmtree")


def test_the_round_trip_looks_as_deep_as_it_is_told(collection):
    candidate = Candidate("usage", 1, "How do I delete the files that take all of my drive?")
    shallow = Retriever("bm25", depth=1)
    assert [len(sift(collection, [candidate], shallow, depth).kept) for depth in (1, 2)] == [0, 1]


def test_a_question_of_unknown_words_finds_nothing(collection):
    [removed] = sift(collection, [Candidate("usage", 1, "Qwx zzy xyzzy plugh?")], BM25).removed
    assert (removed.reason, removed.detail) == ("round trip", "found nothing")


def test_the_funnel_counts_what_each_filter_leaves(collection):
    texts = [
        "Copy?",
        "What does this do?",
        "What is shutil.copytree for?",
        GOOD,
        GOOD.lower(),
        HELD_OUT,
        "Why is lime green?",
    ]
    filtered = sift(collection, [Candidate("copytree", n, text) for n, text in enumerate(texts)], BM25)
    assert [each.reason for each in filtered.removed] == list(REASONS)
    table = funnel(filtered)
    assert table["step"].tolist() == ["written", *REASONS] and table["left"].tolist() == [7, 6, 5, 4, 3, 2, 1]


def test_no_candidates_give_no_pairs(collection):
    filtered = sift(collection, [], BM25)
    assert (filtered.kept, filtered.removed) == ([], []) and funnel(filtered)["left"].tolist() == [0] * 7


def test_a_collection_without_labels_is_enough(collection):
    bare = Collection("bare", collection.corpus, {}, {})
    assert reasons(bare, GOOD, LABELLED) == [None, None]


def test_a_passage_that_the_corpus_lacks_is_named(collection):
    with pytest.raises(RagbenchError, match="p99"):
        sift(collection, [Candidate("p99", 1, GOOD)], BM25)


@pytest.fixture
def serve(chat_server) -> Callable[[dict[str, str]], tuple[Generator, list[dict]]]:
    """Return a function that starts a server with a reply for each title; gives a generator and the requests seen."""

    def start(replies: dict[str, str]) -> tuple[Generator, list[dict]]:
        url, requests = chat_server(
            lambda messages: next(text for title, text in replies.items() if title in messages[-1]["content"])
        )
        return Generator("endpoint", "m", endpoint=url), requests

    return start


def test_from_passages_to_pairs_through_a_server(collection, serve):
    generator, requests = serve(
        {
            "shutil.copytree": f"Here are your questions:\n1. {GOOD}\n2. What does this function do?\n3. A third?",
            "shutil.rmtree": "I cannot help with that.",
            "paint.plum": f"Question: Which call gives me plum?\nQuestion: {OUT_OF_DOMAIN}",
        }
    )
    found = list(passages(collection, ["copytree", "rmtree", "plum"]).values())
    filtered = synthetic_pairs(collection, found, generator, BM25, per_passage=2)
    assert [pair.query_id for pair in filtered.kept] == ["synthetic:copytree:1"]
    assert [(each.passage_id, each.reason) for each in filtered.removed] == [
        ("copytree", "names nothing"), ("plum", "gives the answer away"), ("plum", "leak"),
    ]  # fmt: skip
    assert filtered.silent == ("rmtree",)
    assert {body["max_tokens"] for body in requests} == {2 * QUESTION_TOKENS}
    assert synthetic_pairs(collection, found, generator, BM25, per_passage=2) == filtered and len(requests) == 3


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (3, 3), (9, 4)])
def test_the_example_holds_as_many_questions_as_are_asked_for(collection, serve, count, shown):
    generator, requests = serve({"": "How?"})
    write_questions(list(passages(collection, ["copytree"]).values()), generator, count)
    [body] = requests
    example, asked = body["messages"][2]["content"], body["messages"][3]["content"]
    assert len(parse_questions(example)) == shown
    assert asked.startswith(f"Passage: shutil.copytree {COPY}") and f"Write {count} question" in asked


def test_a_long_passage_is_cut_to_what_the_generator_reads(collection, serve):
    generator, requests = serve({"": "How?"})
    short = Generator(**{**vars(generator), "max_context_tokens": 10})
    write_questions(list(passages(collection, ["copytree"]).values()), short, 1)
    assert requests[0]["messages"][-1]["content"].startswith("Passage: shutil.copytree Recursively c\n\n")


def test_a_local_model_writes_the_same_twice(collection, tiny_generator: Path):
    generator = Generator(model=str(tiny_generator), dtype="float32", max_context_tokens=20)
    found = list(passages(collection, ["copytree", "rmtree"]).values())
    first = synthetic_pairs(collection, found, generator, BM25, per_passage=1)
    assert first == synthetic_pairs(collection, found, generator, BM25, per_passage=1)
    assert first.kept == [] and len(first.removed) + len(first.silent) == 2  # random weights ask nothing


@pytest.mark.parametrize(("backend", "count"), [("none", 2), ("endpoint", 0)])
def test_who_writes_nothing_gives_no_candidates(collection, backend, count):
    found = list(passages(collection, ["copytree"]).values())
    assert write_questions(found, Generator(backend), count) == []
    assert synthetic_pairs(collection, found, Generator(backend), BM25, per_passage=count).silent == ("copytree",)


def test_an_unknown_backend_is_an_error_that_names_the_three(collection):
    with pytest.raises(RagbenchError, match=r"cloud.*local.*endpoint.*none"):
        write_questions(list(passages(collection, ["copytree"]).values()), Generator("cloud"), 2)
