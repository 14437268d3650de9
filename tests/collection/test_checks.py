import random

import pytest

from ragbench.collection.beir import read_collection
from ragbench.collection.checks import check_collection
from ragbench.collection.schema import Collection, Query, corpus_from_rows

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("ba", "lo", "mi", "ne", "ru", "sta", "tik")]


def corpus(*texts):
    return corpus_from_rows((f"p{i}", f"title {i}", text, f"d{i}") for i, text in enumerate(texts))


def report(texts, queries=(), qrels=None):
    return check_collection(Collection("c", corpus(*texts), {query.id: query for query in queries}, qrels or {}))


def finding(done, name):
    return next(found for found in done.findings if found.name == name)


def sentence(seed, length=62):
    return random.Random(seed).sample(WORDS, length)


def variants(changed, pairs=40):
    """Texts in pairs whose sets of word 3-grams share 60 - `changed` of 60 + `changed`."""
    for seed in range(pairs):
        words = sentence(seed)
        yield " ".join(words)
        yield " ".join([*words[:-changed], *(f"other{i}" for i in range(changed))])


def test_a_clean_collection_has_no_findings(toy_folder):
    assert {found.name: found.count for found in check_collection(read_collection(toy_folder)).findings} == {
        "empty passages": 0,
        "oversized passages": 0,
        "duplicate passages": 0,
        "near-duplicate passages": 0,
        "questions in two splits": 0,
        "gold passages in two splits": 0,
        "gold documents in two splits": 0,
        "queries in no split": 0,
    }


def test_counts_say_what_is_there(toy_folder):
    counts = check_collection(read_collection(toy_folder)).counts
    assert counts["passages"] == "4"
    assert counts["queries"] == "3"
    assert counts["split train"] == "1 questions (1 with answer, 0 unanswerable), 1 qrels"
    assert counts["split test"] == "2 questions (2 with answer, 1 unanswerable), 2 qrels"


def test_the_lengths_are_those_of_title_and_text():
    counts = report(["x" * length for length in (1, 3, 13)]).counts
    assert counts["characters in a passage"].startswith("min 9, median 11, ")
    assert counts["characters in a passage"].endswith("max 21")


def test_duplicates_are_found_whatever_their_case_and_spacing():
    done = report(["Cats sleep all day.", "Dogs bark.", "cats  sleep\nALL day.", "Cats sleep all day.", "Cats sleep."])
    assert finding(done, "duplicate passages").count == 2
    assert finding(done, "duplicate passages").examples == ("p2 = p0", "p3 = p0")


def test_a_duplicate_is_not_counted_as_a_near_duplicate_too():
    text = " ".join(sentence(1))
    assert finding(report([text, text]), "near-duplicate passages").count == 0


def test_a_near_duplicate_is_named_with_its_twin():
    words = sentence(1, 300)
    done = report([" ".join(sentence(2)), " ".join(words), " ".join([*words[:-1], "changed"])])
    assert finding(done, "near-duplicate passages").examples == ("p2 ~ p1",)
    assert finding(done, "duplicate passages").count == 0


def test_all_pairs_above_the_near_duplicate_bound_are_found():
    assert (60 - 3) / (60 + 3) > 0.9
    assert finding(report(variants(3)), "near-duplicate passages").count == 40


def test_no_pair_below_the_near_duplicate_bound_is_reported():
    assert (60 - 8) / (60 + 8) < 0.8
    assert finding(report(variants(8)), "near-duplicate passages").count == 0


def test_empty_passages_are_found():
    rows = [("a", "", "", "d"), ("b", " ", "\n\t", "d"), ("c", "title", "", "d"), ("d", "", "text", "d")]
    done = check_collection(Collection("c", corpus_from_rows(rows), {}, {}))
    assert finding(done, "empty passages").examples == ("a", "b")
    assert finding(done, "duplicate passages").count == 0


@pytest.mark.parametrize(("characters", "count"), [(8000, 0), (8001, 1)])
def test_oversized_passages_are_those_over_8000_characters(characters, count):
    rows = [("big", "", "é" * characters, "d"), ("small", "", "x", "d")]
    done = check_collection(Collection("c", corpus_from_rows(rows), {}, {}))
    assert finding(done, "oversized passages").count == count
    assert finding(done, "oversized passages").examples == ("big",) * count


def test_questions_in_two_splits_are_found_whatever_their_case_and_spacing():
    queries = [Query("q1", "What do cats do?"), Query("q2", "what  do CATS do?"), Query("q3", "What do dogs do?")]
    done = report(["a", "b", "c"], queries, {"train": {"q1": {"p0": 1}}, "test": {"q2": {"p1": 1}, "q3": {"p2": 1}}})
    assert finding(done, "questions in two splits").examples == ("what do cats do? (test, train)",)


def test_one_query_in_two_splits_is_found():
    done = report(["a", "b"], [Query("q1", "What?")], {"train": {"q1": {"p0": 1}}, "test": {"q1": {"p1": 1}}})
    assert finding(done, "questions in two splits").count == 1


def test_a_question_twice_in_one_split_is_no_leak():
    queries = [Query("q1", "What?"), Query("q2", "What?")]
    assert (
        finding(report(["a"], queries, {"train": {"q1": {"p0": 1}, "q2": {"p0": 1}}}), "questions in two splits").count
        == 0
    )


def test_gold_passages_in_two_splits_are_named_with_the_splits():
    queries = [Query("q1", "One?"), Query("q2", "Two?"), Query("q3", "Three?")]
    qrels = {"train": {"q1": {"p0": 1, "p1": 1}}, "dev": {"q2": {"p2": 1}}, "test": {"q3": {"p1": 1}}}
    done = report(["a", "b", "c"], queries, qrels)
    assert finding(done, "gold passages in two splits").examples == ("p1 (train, test)",)


def test_gold_documents_in_two_splits_are_found_without_a_shared_passage():
    rows = [("p0", "", "alpha", "book"), ("p1", "", "beta", "book"), ("p2", "", "gamma", "letter")]
    queries = {name: Query(name, name) for name in ("q1", "q2")}
    qrels = {"train": {"q1": {"p0": 1, "p2": 1}}, "test": {"q2": {"p1": 1}}}
    done = check_collection(Collection("c", corpus_from_rows(rows), queries, qrels))
    assert finding(done, "gold passages in two splits").count == 0
    assert finding(done, "gold documents in two splits").examples == ("book (train, test)",)


def test_queries_in_no_split_are_found():
    done = report(["a"], [Query("q1", "One?"), Query("q2", "Two?")], {"train": {"q1": {"p0": 1}}})
    assert finding(done, "queries in no split").examples == ("q2",)


def test_languages_are_told_apart():
    german = "Der Hund schläft den ganzen Tag im Garten und träumt von {} fetten Katzen."
    english = "The old man went to the market to buy bread and milk for {} hungry children."
    texts = [english.format(i) for i in range(3)] + [german.format("vielen")]
    counts = report(
        texts, [Query("q", "Où est la bibliothèque, s'il vous plaît ?")], {"train": {"q": {"p0": 1}}}
    ).counts
    assert counts["languages (passages)"] == "en 75%, de 25%"
    assert counts["languages (queries)"] == "fr 100%"


def test_a_collection_without_queries_or_words_can_be_checked():
    counts = report(["", ""]).counts
    assert counts["languages (queries)"] == "none"
    assert counts["queries"] == "0"


def test_many_findings_are_counted_and_three_are_shown():
    found = finding(report(["same text"] * 9), "duplicate passages")
    assert found.count == 8
    assert len(found.examples) == 3


def test_the_lines_for_the_terminal_show_every_count_and_finding():
    done = report(["same text", "same text"])
    lines = done.lines()
    assert len(lines) == len(done.counts) + len(done.findings)
    assert [line.split() for line in lines if line.startswith("passages")] == [["passages", "2"]]
    assert [line.split() for line in lines if line.startswith("duplicate")] == [
        ["duplicate", "passages", "1", "e.g.", "p1", "=", "p0"]
    ]


def test_a_collection_without_labels_is_checked_for_what_its_passages_hold():
    done = report(["same text", "Same  text", ""])
    assert {found.name: found.count for found in done.findings if found.count} == {"duplicate passages": 1}
    assert [line.split()[0] for line in done.lines() if line.startswith("split")] == []
