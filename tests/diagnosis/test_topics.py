import numpy as np
import pandas as pd
import pytest

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.diagnosis.counterfactual import Trial
from ragbench.diagnosis.evidence import gather
from ragbench.diagnosis.measures import COLUMNS
from ragbench.diagnosis.topics import QUESTIONS_PER_TOPIC, topics_of
from ragbench.retrieval.encoder import open_encoder

FINE, COARSE = QUESTIONS_PER_TOPIC
THEMES = ("bab bed bid", "tog tug tun")


@pytest.fixture
def encoder(tiny_encoder):
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


def ask(*golds, extra=()):
    """Return a collection of one question for each list of gold texts, and a trial of it."""
    rows, qrels, queries = [], {}, []
    for number, texts in enumerate(golds):
        queries.append(Query(f"q{number}", f"What is {number}?"))
        qrels[f"q{number}"] = {f"p{number}-{place}": 1 for place in range(len(texts))}
        rows += [(f"p{number}-{place}", "", text, "d") for place, text in enumerate(texts)]
    rows += [(f"x{place}", "", text, "d") for place, text in enumerate(extra)]
    corpus = corpus_from_rows(rows or [("p", "", "Text.", "d")])
    collection = Collection("hand-made", corpus, {query.id: query for query in queries}, {"test": qrels})
    return collection, Trial({"test": queries}, {}, 3, {})


def themes(each, first=THEMES[0], second=THEMES[1]):
    return ask(*([[first]] * each), *([[second]] * each))


def test_questions_with_like_passages_share_a_topic(encoder):
    topics = topics_of(*themes(FINE), encoder)
    fine = topics[FINE].tolist()
    assert len(set(fine[:FINE])) == len(set(fine[FINE:])) == 1
    assert fine[0] != fine[-1]
    assert topics[COARSE].nunique() == 1


def test_a_topic_is_named_by_words_that_set_it_apart(encoder):
    topics = topics_of(*themes(FINE, "dog bab bed bid dog", "dog tog tug tun dog"), encoder)
    assert set(topics[FINE].iloc[0].split(", ")) == {"bab", "bed", "bid"}
    assert set(topics[FINE].iloc[-1].split(", ")) == {"tog", "tug", "tun"}


@pytest.mark.parametrize("first", ["bab", "12 34 56 78"])
def test_a_topics_name_has_only_words_of_its_own_passages(encoder, first):
    topics = topics_of(*themes(FINE, first, "tog tug tun"), encoder)
    assert topics[FINE].nunique() == 2
    assert not {"tog", "tug", "tun"}.intersection(topics[FINE].iloc[0].split(", "))


def test_the_topics_stand_in_the_order_of_the_evidence(encoder):
    collection, trial = ask(["bab"], [], ["bed"], [], ["tog"])
    evidence = gather(collection, trial, pd.DataFrame(columns=COLUMNS), encoder)
    topics = topics_of(collection, trial, encoder)
    assert topics.index.equals(evidence.index)
    assert topics.notna().all(axis=1).tolist() == evidence["stage"].notna().tolist() == [True, False, True, False, True]


def test_without_gold_passages_there_are_no_topics(encoder):
    topics = topics_of(*ask([], []), encoder)
    assert topics.shape == (2, 2) and topics.isna().all(axis=None)


def test_without_questions_there_are_no_topics(encoder):
    topics = topics_of(*ask(), encoder)
    assert topics.shape == (0, 2)


@pytest.mark.parametrize("n", [1, 2, FINE, 2 * FINE - 1])
def test_too_few_questions_for_two_topics_have_one(encoder, n):
    topics = topics_of(*ask(*([f"bab {'bed ' * number}"] for number in range(n))), encoder)
    assert topics.nunique().tolist() == [1, 1] and topics.notna().all(axis=None)


def test_passages_that_are_all_the_same_are_one_topic(encoder):
    topics = topics_of(*ask(*([["bab bed"]] * (4 * FINE))), encoder)
    assert topics[FINE].unique().tolist() == ["bab, bed"]


def test_topics_whose_passages_have_no_words_are_numbered(encoder):
    topics = topics_of(*themes(FINE, "1 2 3", "!!! ???"), encoder)
    assert set(topics[FINE]) == {"topic 1", "topic 2"} and set(topics[COARSE]) == {"topic 1"}


def test_topics_that_would_have_the_same_name_are_told_apart(encoder):
    topics = topics_of(*themes(FINE, "bab bed bid " * 3, "bab bed bid " + "12 34 , ; : ! " * 10), encoder)
    assert topics[FINE].nunique() == 2
    assert all(name.startswith("bab, bed, bid") for name in topics[FINE])


def test_a_question_lies_where_the_mean_of_its_gold_passages_lies(encoder):
    many = [["bab bed bid", "bab bed bid", "tog tug tun"]]  # two of three are of the first theme
    topics = topics_of(*ask(*([[THEMES[0]]] * FINE), *([[THEMES[1]]] * FINE), *many), encoder)
    assert topics[FINE].iloc[-1] == topics[FINE].iloc[0]


def test_passages_that_are_not_gold_make_no_topic(encoder):
    collection, trial = ask(["bab"], ["bed"], extra=["zebra quux"] * 20)
    assert not any("zebra" in name for name in topics_of(collection, trial, encoder)[FINE])


def test_the_topics_are_the_same_each_time(encoder):
    random = np.random.default_rng(1)
    words = ["bab", "bed", "bid", "dog", "dug", "tog", "tug", "tun", "nag", "net"]
    asked = ask(*([" ".join(random.choice(words, 6))] for _ in range(4 * FINE)))
    pd.testing.assert_frame_equal(topics_of(*asked, encoder, seed=3), topics_of(*asked, encoder, seed=3))
