import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.beir import read_collection
from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.retrieval.sparse import bm25_run, bm25_scores

PASSAGES = {
    "a": "Cats sleep. Cats purr and sleep, cats dream.",
    "b": "Dogs bark at cats",
    "c": "Fish swim in cold water under the ice all winter long",
    "d": "The dog sleeps",
    "e": "",
}


def collection(passages=PASSAGES):
    return Collection("small", corpus_from_rows((name, "", text, name) for name, text in passages.items()), {}, {})


def bm25(query, k1, b):
    """Score by Lucene's formula: idf · tf / (tf + k1 · (1 − b + b · length / mean length))."""
    words = {name: re.findall(r"\w\w+", text.lower()) for name, text in PASSAGES.items()}
    mean = sum(map(len, words.values())) / len(words)
    scores = {}
    for name, own in words.items():
        total = 0.0
        for word in re.findall(r"\w\w+", query.lower()):
            having = sum(word in other for other in words.values())
            idf = math.log(1 + (len(words) - having + 0.5) / (having + 0.5))
            tf = own.count(word)
            total += idf * tf / (tf + k1 * (1 - b + b * len(own) / mean))
        if total > 0:
            scores[name] = total
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (0.5, 0.0)])
@pytest.mark.parametrize("text", ["cats sleep", "Do DOGS swim?", "the winter ice", "cats cats dogs"])
def test_scores_are_lucenes_bm25(text, k1, b):
    found = bm25_run(collection(), [Query("q", text)], 10, k1, b)["q"]
    expected = bm25(text, k1, b)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-5)


def test_defaults_are_anserinis():
    assert bm25_run(collection(), [Query("q", "cats")], 10)["q"] == pytest.approx(bm25("cats", 0.9, 0.4), rel=1e-5)


def test_passages_without_a_shared_word_are_left_out():
    run = bm25_run(collection(), [Query("q", "winter"), Query("none", "zebra"), Query("empty", "")], 10)
    assert {name: list(found) for name, found in run.items()} == {"q": ["c"], "none": [], "empty": []}


def test_depth_keeps_the_best():
    assert list(bm25_run(collection(), [Query("q", "cats dogs")], 1)["q"]) == ["b"]


def test_equal_scores_are_ordered_by_id():
    twins = collection({"m": "same words", "b": "same words", "x": "other things", "z": "same words"})
    assert list(bm25_run(twins, [Query("q", "same")], 4)["q"]) == ["b", "m", "z"]


# Which of the tied passages a partial sort keeps depends on the processor.
def test_equal_scores_at_the_depth_are_kept_by_id():
    twins = collection({f"p{number * 37 % 100:02}": "same words" for number in range(100)} | {"x": "other"})
    assert list(bm25_run(twins, [Query("q", "same")], 5)["q"]) == ["p00", "p01", "p02", "p03", "p04"]


def test_titles_are_searched_too(toy_folder):
    run = bm25_run(read_collection(toy_folder), [Query("q", "birds")], 10)
    assert list(run["q"]) == ["p4"]


def test_a_corpus_or_a_query_list_without_words_finds_nothing():
    assert bm25_run(collection({"a": "", "b": "!"}), [Query("q", "cats")], 10) == {"q": {}}
    assert bm25_run(collection(), [], 10) == {}


words = st.lists(st.sampled_from(["cats", "Dogs", "fish", "c", "!"]), max_size=5).map(" ".join)


@given(st.lists(words, min_size=1, max_size=6), st.lists(words, max_size=3))
@settings(deadline=None)
def test_the_scores_of_every_passage_agree_with_the_run(passages, questions):
    data = collection({f"p{number}": text for number, text in enumerate(passages)})
    run = bm25_run(data, [Query(str(n), question) for n, question in enumerate(questions)], 99, 1.2, 0.6)
    every_score = list(bm25_scores(data, questions, 1.2, 0.6))
    assert len(every_score) == len(questions)
    for found, scores in zip(run.values(), every_score, strict=True):
        assert scores.shape == (len(passages),) and scores.dtype == np.float32
        assert found == {f"p{row}": pytest.approx(score) for row, score in enumerate(scores) if score > 0}


def test_scores_come_one_question_at_a_time_with_anserinis_defaults():
    scores = bm25_scores(collection(), ["cats", "zebra"])
    first = dict(zip(PASSAGES, next(scores), strict=True))
    assert {name: score for name, score in first.items() if score} == pytest.approx(bm25("cats", 0.9, 0.4), rel=1e-5)
    assert not next(scores).any()
    assert next(scores, None) is None


def test_a_corpus_without_words_scores_nothing():
    [scores] = bm25_scores(collection({"a": "", "b": "!"}), ["cats"])
    assert scores.tolist() == [0, 0]


def test_bm25_does_not_start_jax_which_would_take_the_gpus_memory(tmp_path):
    package = tmp_path / "jax"
    package.mkdir()
    (package / "__init__.py").write_text("print('started')")
    (package / "lax.py").write_text("top_k = print")
    code = "import ragbench.retrieval.sparse; print('read'); import jax.lax"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["read", "started"]  # and who wants it gets it as ever
