from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from ragbench.collection.schema import Collection, Query, corpus_from_rows, passage_texts
from ragbench.errors import RagbenchError
from ragbench.retrieval.encoder import Encoder, encode, open_encoder
from ragbench.retrieval.sparse import bm25_run
from ragbench.training import cross_encoder
from ragbench.training.cross_encoder import cross_scores
from ragbench.training.pairs import Pair
from ragbench.training.teachers import teacher_scores

TEXTS = ["bab dad gag", "bab dad", "bab kak", "lal mam", "nan pap rar", "bab bab bab lal"]
DATA = Collection("c", corpus_from_rows((f"p{n}", "", text, "d") for n, text in enumerate(TEXTS)), {}, {})
QUESTIONS = ["bab dad gag?", "lal mam?", "sas tat?"]
PAIRS = [Pair(f"q{n}", question, f"p{n}", TEXTS[n], "labelled") for n, question in enumerate(QUESTIONS)]
NEGATIVES = np.array([[1, 2, 3, 4, 5], [3, 5, 4, 0, 2], [3, 4, 5, 0, 1]])
ROWS = np.concatenate([[[0], [1], [2]], NEGATIVES], axis=1)


@pytest.fixture
def encoder(tiny_encoder: Path) -> Encoder:
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tiny_cross_encoder(tiny_encoder: Path, tmp_path_factory) -> Path:
    """A cross-encoder of a few thousand random weights, large enough that its scores differ."""
    folder = tmp_path_factory.mktemp("tiny-cross-encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
        initializer_range=1.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_no_teacher_gives_no_scores(encoder):
    assert teacher_scores(DATA, PAIRS, NEGATIVES, "", encoder) is None


def test_bm25_scores_are_shares_of_the_questions_highest_in_the_order_of_bm25(encoder):
    scores = teacher_scores(DATA, PAIRS, NEGATIVES, "bm25", encoder)
    assert scores.shape == (3, 6) and scores.dtype == np.float64
    run = bm25_run(DATA, [Query(pair.query_id, pair.question) for pair in PAIRS], depth=99)
    for pair, rows, row in zip(PAIRS, ROWS, scores, strict=True):
        found = run[pair.query_id]
        highest = max(found.values(), default=1.0)
        assert row == pytest.approx([found.get(f"p{place}", 0.0) / highest for place in rows], rel=1e-6)
    assert scores[0, 0] == 1 and scores[1].max() == 1 and not scores[2].any()


def test_the_fusion_is_the_mean_of_bm25_and_the_cosine(encoder):
    lexical = teacher_scores(DATA, PAIRS, NEGATIVES, "bm25", encoder)
    cosines = encode(encoder, QUESTIONS, "query") @ encode(encoder, passage_texts(DATA), "passage").T
    dense = np.take_along_axis(cosines, ROWS, axis=1)
    assert teacher_scores(DATA, PAIRS, NEGATIVES, "fusion", encoder) == pytest.approx((lexical + dense) / 2, abs=1e-6)


def test_a_pair_without_negatives_has_the_score_of_its_positive(encoder):
    scores = teacher_scores(DATA, PAIRS, np.empty((3, 0), dtype=np.int64), "bm25", encoder)
    assert scores[:, 0] == pytest.approx(teacher_scores(DATA, PAIRS, NEGATIVES, "bm25", encoder)[:, 0])


def test_a_cross_encoder_gives_each_pair_of_texts_its_probability(encoder, tiny_cross_encoder, tmp_path, monkeypatch):
    scores = teacher_scores(DATA, PAIRS, NEGATIVES, str(tiny_cross_encoder), encoder)
    assert scores.shape == (3, 6) and ((scores > 0) & (scores < 1)).all() and scores.std() > 0.01
    monkeypatch.setenv("RAGBENCH_CACHE", str(tmp_path / "another cache"))
    score = cross_scores(str(tiny_cross_encoder), "cpu")
    for question, rows, row in zip(QUESTIONS, ROWS, scores, strict=True):
        alone = [float(score([(question, TEXTS[place])])[0]) for place in rows]
        assert row == pytest.approx(alone, abs=1e-5)


def test_the_probability_is_the_sigmoid_of_the_models_logit(tiny_cross_encoder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_cross_encoder)
    model = BertForSequenceClassification.from_pretrained(tiny_cross_encoder).eval()
    with torch.inference_mode():
        logit = model(**tokenizer(QUESTIONS[0], TEXTS[1], return_tensors="pt")).logits.item()
    found = cross_scores(str(tiny_cross_encoder), "cpu")([(QUESTIONS[0], TEXTS[1])])
    assert found == pytest.approx([1 / (1 + np.exp(-logit))], abs=1e-5)


def test_what_a_cross_encoder_judged_before_an_interruption_is_not_judged_again(
    tiny_cross_encoder, tmp_path, monkeypatch
):
    asked = [(QUESTIONS[0], text) for text in TEXTS]
    real, judged = cross_encoder._predict, []

    def interrupted(model, pairs):
        judged.extend(pairs)
        if len(judged) > 3:
            raise KeyboardInterrupt
        return real(model, pairs)

    monkeypatch.setattr("ragbench.training.cross_encoder._CHUNK", 2)
    monkeypatch.setattr("ragbench.training.cross_encoder._predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cross_scores(str(tiny_cross_encoder), "cpu")(asked)
    judged.clear()
    monkeypatch.setattr(
        "ragbench.training.cross_encoder._predict", lambda m, pairs: judged.extend(pairs) or real(m, pairs)
    )
    found = cross_scores(str(tiny_cross_encoder), "cpu")(asked)
    assert judged == asked[2:]
    monkeypatch.setenv("RAGBENCH_CACHE", str(tmp_path / "another cache"))
    alone = [cross_scores(str(tiny_cross_encoder), "cpu")([pair])[0] for pair in asked]
    assert found == pytest.approx(alone, abs=1e-5)


def test_no_cross_encoder_gives_no_scoring_function():
    assert cross_scores("", "cpu") is None


def test_a_cross_encoder_that_is_not_there_is_an_error_that_names_it(encoder):
    with pytest.raises(RagbenchError, match="no-such-teacher"):
        teacher_scores(DATA, PAIRS, NEGATIVES, "no-such-teacher", encoder)
