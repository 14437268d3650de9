from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.evaluation.answer_metrics import (
    citation_precision,
    citation_recall,
    citations,
    conforms,
    exact_match,
    form,
    refusal,
    refuses,
    token_f1,
)

WORDS = st.lists(st.sampled_from(["copy", "tree", "folder", "moves", "3", "x1"]), max_size=7)
TEXT = st.text(max_size=40)


def sentence(words, style):
    return {"plain": " ".join(words), "loud": ", ".join(words).upper() + "!", "cited": " ".join([*words, "[a.b]"])}[
        style
    ]


@settings(max_examples=100, deadline=None)
@given(ours=WORDS, theirs=WORDS, style=st.sampled_from(["plain", "loud", "cited"]))
def test_f1_is_the_harmonic_mean_of_word_precision_and_recall(ours, theirs, style):
    value = token_f1(sentence(ours, style), sentence(theirs, "plain"))
    shared = sum(min(count, Counter(theirs)[word]) for word, count in Counter(ours).items())
    if not ours or not theirs:
        assert value == float(ours == theirs)
    elif not shared:
        assert value == 0
    else:
        precision, recall = shared / len(ours), shared / len(theirs)
        assert value == pytest.approx(2 * precision * recall / (precision + recall))


@settings(max_examples=100, deadline=None)
@given(ours=TEXT, theirs=TEXT)
def test_f1_is_symmetric_bounded_and_one_where_exact_match_is(ours, theirs):
    value = token_f1(ours, theirs)
    assert value == token_f1(theirs, ours) and 0 <= value <= 1
    assert token_f1(ours, ours) == exact_match(ours, ours) == 1
    assert exact_match(ours, theirs) <= value


@settings(max_examples=50, deadline=None)
@given(words=WORDS, order=st.randoms(use_true_random=False))
def test_f1_ignores_the_order_of_words(words, order):
    shuffled = list(words)
    order.shuffle(shuffled)
    assert token_f1(" ".join(words), " ".join(shuffled)) == 1


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("The copytree function!", "copytree function", 1),
        ("Call a copytree [x.y]", "call copytree [other]", 1),
        ("shutil.copytree(src)", "shutil copytree src", 1),
        ("copy tree", "tree copy", 0),
        ("copy", "copy tree", 0),
        ("", "", 1),
        ("", "copy", 0),
        ("Äpfel", "äpfel", 1),
    ],
)
def test_exact_match_compares_words_in_order(answer, reference, same):
    assert exact_match(answer, reference) == same


def test_f1_by_hand():
    # "call shutil copytree" against "use shutil copytree src dst": two shared words of three and five.
    assert token_f1("Call shutil.copytree. [x]", "Use the shutil.copytree(src, dst). [y]") == pytest.approx(4 / 8)


@pytest.mark.parametrize(
    ("answer", "ids"),
    [
        ("Call it. [a.b]", ["a.b"]),
        ("Call it [b], then that. [a] [b]", ["b", "a"]),
        ("Joined. [a][b]", ["a", "b"]),
        ("The documents do not say. [none]", []),
        ("[none] [a]", ["a"]),
        ("Nothing here, [] nor [two words] nor [open", []),
        ("", []),
        ("Read `sys.argv[1]` or x[0] first. [sys.argv]", ["sys.argv"]),
        ("`d[key]` returns a copy. [shelve]", ["shelve"]),
    ],
)
def test_citations_are_ids_in_brackets_each_once(answer, ids):
    assert citations(answer) == ids


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ("Call `shutil.copytree(src, dst)`. [shutil.copytree]", 1),
        ("Two sources. [a] [b.c]", 1),
        ("Two lines.\nOf text. [a]\n", 1),
        ("The documents do not say. [none]", 1),
        ("No source.", 0),
        ("[a]", 0),
        ("The source [a] is not last.", 0),
        ("Spaces inside. [a b]", 0),
        ("Empty. []", 0),
        ("", 0),
    ],
)
def test_the_house_style_is_text_that_ends_with_its_sources(answer, fits):
    assert conforms(answer) == fits


def test_another_format_must_match_the_whole_answer():
    assert (conforms("yes", "yes|no"), conforms("yes!", "yes|no"), conforms(" no\n", "yes|no")) == (1, 0, 1)


@pytest.mark.parametrize(
    "answer",
    [
        "The documents do not say. [none]",
        "The passages don't mention this.",
        "the provided context does not contain information about horses",
        "This is not mentioned in the documents.",
        "That isn't specified in the passages.",
        "I cannot answer this question from the passages.",
        "The question cannot be answered. [none]",
        "I'm unable to answer.",
        "[NONE]",
        "The documents don’t say.",
    ],
)
def test_refusals_are_recognised(answer):
    assert refuses(answer)
    assert (refusal(answer, answerable=False), refusal(answer, answerable=True)) == (1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        "Call `shutil.copytree(src, dst)`. [shutil.copytree]",
        "The documents say that cats sleep all day. [p1]",
        "Use the context manager; it closes the source file. [contextlib.closing]",
        "Do not mention the text twice. [p2]",
        "It returns None, and does not raise. [dict.get]",
        "The function cannot be called twice. [p3]",
        "It returns -1 if the text does not contain the word. [str.find]",
        "`guess_type` returns None when it cannot determine the type. [mimetypes.guess_type]",
        "",
    ],
)
def test_answers_that_merely_sound_alike_are_no_refusals(answer):
    assert not refuses(answer)
    assert (refusal(answer, answerable=False), refusal(answer, answerable=True)) == (0, 1)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("The documents do not say. [none]", "refusal"),
        ("- I cannot answer this.\n- The documents do not say.", "refusal"),
        ("```python\nshutil.copytree(src, dst)\n```", "code"),
        ("Like this: ```ls``` [os.listdir]", "code"),
        ("- one\n- two", "list"),
        ("Three ways:\n  * one\n  * two [a]", "list"),
        ("1. Open it.\n2. Close it. [io.open]", "list"),
        ("1) Open it.\n2) Close it.", "list"),
        ("\u2022 one\n\u2022 two", "list"),
        ("Sure!\n- only one point", "plain"),  # one point is no list
        ("It is - as always - up to you - really.", "plain"),
        ("**Bold**\n**words**", "plain"),
        ("-1\n-2", "plain"),
        ("3.5 is a number.\n2.5 is one, too.", "plain"),
        ("Call `copytree`. [shutil.copytree]", "cited"),
        ("The source [a] stands in the middle.", "cited"),
        ("Read `sys.argv[1]`.", "plain"),
        ("Cats sleep.", "plain"),
    ],
)
def test_every_answer_has_one_form(answer, kind):
    assert form(answer) == kind


@settings(max_examples=100, deadline=None)
@given(answer=TEXT, space=st.sampled_from([" ", "\n", "\n\n"]))
def test_the_form_does_not_hang_on_space_around_the_answer(answer, space):
    assert form(space + answer + space) == form(answer)
    assert (form(answer) == "empty") == (not answer.strip())
    assert (form(answer) == "refusal") == (bool(answer.strip()) and refuses(answer))


def test_citation_precision_is_the_share_of_cited_passages_that_are_gold():
    gold = {"a", "b"}
    assert citation_precision("Text. [a]", gold) == 1
    assert citation_precision("Text. [a] [x] [y] [b]", gold) == 0.5
    assert citation_precision("Text. [a] [a] [x]", gold) == 0.5
    assert citation_precision("Text. [x]", gold) == citation_precision("Text.", gold) == 0
    assert citation_precision("The documents do not say. [none]", gold) == 0
    assert citation_precision("Text. [a]", set()) is None


def test_citation_recall_needs_one_passage_of_each_group():
    groups = (frozenset({"a", "b"}), frozenset({"c"}))
    assert citation_recall("Text. [b] [c]", groups) == 1
    assert citation_recall("Text. [a] [b]", groups) == 0.5
    assert citation_recall("Text. [x]", groups) == citation_recall("Text. [none]", groups) == 0
    assert citation_recall("Text. [a]", ()) is None


def test_one_cited_passage_counts_in_every_group_that_it_is_in():
    assert citation_recall("[a]", (frozenset({"a", "b"}), frozenset({"a", "c"}), frozenset({"d"}))) == pytest.approx(
        2 / 3
    )
