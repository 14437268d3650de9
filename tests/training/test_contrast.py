import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_vocabulary import WORDS
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from ragbench.training import contrast as module
from ragbench.training.contrast import ROW, NeighbourhoodSampler, SharedPassagesLoss, contrast, embed

ONE, TWO, THREE, FOUR = (" ".join(WORDS[place : place + 3]) for place in (0, 3, 6, 9))
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def model(tiny_encoder):
    return SentenceTransformer(str(tiny_encoder), device="cpu").eval()


@pytest.fixture(scope="module")
def padding_left(tiny_generator):
    """A decoder as an encoder: its embedding is that of the last token, and the padding stands before the text."""
    transformer = Transformer(str(tiny_generator), processor_kwargs={"padding_side": "left"})
    return SentenceTransformer(modules=[transformer, Pooling(32, "lasttoken")], device="cpu").eval()


def tokenized(encoder, texts):
    """Return the tensors that a batch of texts becomes."""
    return {name: value for name, value in encoder.preprocess(texts).items() if isinstance(value, torch.Tensor)}


def rows_of(*texts, negatives=()):
    """Return a dataset of (question, positive) rows, with a column of negatives if there are any."""
    columns = {name: list(found) for name, found in zip(("anchor", "positive"), zip(*texts, strict=True), strict=True)}
    return Dataset.from_dict(columns | ({"negative_1": list(negatives)} if negatives else {}))


def loss_of(model, rows, batch):
    """Return `SharedPassagesLoss` on some of the rows, which it gets as the trainer passes them."""
    features = [model.preprocess(rows[batch][name]) for name in rows.column_names]
    return SharedPassagesLoss(model, rows)(features, torch.tensor(batch))


def by_hand(model, question, positives, negatives):
    """Return InfoNCE at scale 20 of one question, each positive against the negatives alone."""
    texts = [question, *positives, *negatives]
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False).astype(float)
    scores = np.exp(20 * vectors[1:] @ vectors[0])
    rest = scores[len(positives) :].sum()
    return -np.mean([math.log(score / (score + rest)) for score in scores[: len(positives)]])


def rows_through(model):
    """Return a list to which the size of every forward pass is added, and the handle that ends this."""
    sizes = []
    return sizes, model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0]["input_ids"])))


# InfoNCE with several positives


@st.composite
def scored(draw):
    questions, passages = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    number = st.floats(-20, 20, width=32)
    row = st.lists(number, min_size=passages, max_size=passages)
    marks = st.lists(st.booleans(), min_size=passages, max_size=passages).filter(any)
    scores = draw(st.lists(row, min_size=questions, max_size=questions))
    answers = draw(st.lists(marks, min_size=questions, max_size=questions))
    return torch.tensor(scores, requires_grad=True), torch.tensor(answers)


def looped(scores, answers):
    losses = []
    for row, marks in zip(scores.tolist(), answers.tolist(), strict=True):
        negatives = [math.exp(score) for score, answer in zip(row, marks, strict=True) if not answer]
        positives = [math.exp(score) for score, answer in zip(row, marks, strict=True) if answer]
        losses.append(-np.mean([math.log(score / (score + sum(negatives))) for score in positives]))
    return np.mean(losses)


@given(scored())
def test_the_loss_is_that_of_a_loop_over_questions_and_positives_and_its_gradient_is_finite(drawn):
    scores, answers = drawn
    loss = contrast(scores, answers)
    assert float(loss.detach()) == pytest.approx(looped(scores.detach(), answers), rel=1e-4, abs=1e-5)
    loss.backward()
    assert scores.grad.isfinite().all()
    # A higher score helps an answer and hurts what is none.
    assert (scores.grad[answers] <= 0).all() and (scores.grad[~answers] >= 0).all()


def test_where_every_passage_is_an_answer_there_is_nothing_to_learn():
    scores = torch.tensor([[3.0, -2.0]], requires_grad=True)
    loss = contrast(scores, torch.tensor([[True, True]]))
    loss.backward()
    assert loss.item() == 0 and scores.grad.tolist() == [[0, 0]]


# The loss over the distinct passages of a batch


@pytest.mark.parametrize("negatives", [(), (FOUR, f"{ONE} {TWO}", THREE + " zebra")])
def test_without_shared_passages_it_is_multiple_negatives_ranking(model, negatives):
    rows = rows_of((WORDS[0], ONE), (WORDS[4], f"{TWO} {FOUR}"), (WORDS[7], THREE), negatives=negatives)
    features = [model.preprocess(rows[name]) for name in rows.column_names]
    usual = MultipleNegativesRankingLoss(model, scale=20.0)(features, None)
    assert loss_of(model, rows, [0, 1, 2]).item() == pytest.approx(usual.item(), rel=1e-5)
    assert usual.item() > 0.1


def test_the_order_of_a_batch_does_not_matter(model):
    rows = rows_of((WORDS[0], ONE), (WORDS[4], TWO), (WORDS[7], ONE), (WORDS[0], THREE))
    assert loss_of(model, rows, [2, 0, 3, 1]).item() == pytest.approx(loss_of(model, rows, [0, 1, 2, 3]).item())


def test_a_shared_passage_is_encoded_once_and_is_no_negative_for_any_of_its_questions(model):
    rows = rows_of((WORDS[0], ONE), (WORDS[4], ONE), (WORDS[7], TWO))
    sizes, handle = rows_through(model)
    loss = loss_of(model, rows, [0, 1, 2]).item()
    handle.remove()
    assert sum(sizes) == 3 + 2
    questions = [(WORDS[0], ONE, TWO), (WORDS[4], ONE, TWO), (WORDS[7], TWO, ONE)]
    expected = [by_hand(model, question, [answer], [other]) for question, answer, other in questions]
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_mined_negative_that_is_also_a_positive_is_encoded_once(model):
    rows = rows_of((WORDS[0], ONE), (WORDS[4], TWO), negatives=(TWO, THREE))
    sizes, handle = rows_through(model)
    loss = loss_of(model, rows, [0, 1]).item()
    handle.remove()
    assert sum(sizes) == 2 + 3
    expected = [by_hand(model, WORDS[0], [ONE], [TWO, THREE]), by_hand(model, WORDS[4], [TWO], [ONE, THREE])]
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_question_with_two_answers_in_the_batch_counts_once_with_either_against_the_rest(model):
    rows = rows_of((WORDS[0], ONE), (WORDS[0], TWO), (WORDS[4], THREE))
    sizes, handle = rows_through(model)
    loss = loss_of(model, rows, [0, 1, 2]).item()
    handle.remove()
    assert sum(sizes) == 2 + 3
    expected = [by_hand(model, WORDS[0], [ONE, TWO], [THREE]), by_hand(model, WORDS[4], [THREE], [ONE, TWO])]
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_an_answer_that_the_batch_has_for_another_question_or_as_a_negative_is_none_for_its_own(model):
    rows = rows_of((WORDS[0], ONE), (WORDS[4], TWO), (WORDS[0], TWO), negatives=(THREE, ONE, THREE))
    expected = [by_hand(model, WORDS[0], [ONE, TWO], [THREE]), by_hand(model, WORDS[4], [TWO], [ONE, THREE])]
    assert loss_of(model, rows, [0, 1]).item() == pytest.approx(np.mean(expected), rel=1e-4)


# Embeddings


@pytest.mark.parametrize("budget", [1, 12, 1024])
@pytest.mark.parametrize("encoder", ["model", "padding_left"])
def test_texts_of_any_length_come_back_as_from_a_plain_pass_and_in_their_order(request, monkeypatch, encoder, budget):
    monkeypatch.setattr(module, "CPU_BATCH_TOKENS", budget)
    encoder = request.getfixturevalue(encoder)

    @settings(max_examples=20, deadline=None)
    @given(TEXTS)
    def check(texts):
        features = tokenized(encoder, texts)
        with torch.inference_mode():
            plain = encoder({**features})["sentence_embedding"]
            torch.testing.assert_close(
                embed(encoder, features), torch.nn.functional.normalize(plain), rtol=0, atol=1e-5
            )

    check()


def test_short_texts_are_not_padded_to_the_longest(model, monkeypatch):
    monkeypatch.setattr(module, "CPU_BATCH_TOKENS", 40)
    texts = [WORDS[0], " ".join(WORDS[:40]), WORDS[1], WORDS[2]]
    shapes = []
    handle = model.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0]["input_ids"].shape)))
    embed(model, tokenized(model, texts))
    handle.remove()
    assert shapes == [(1, 40), (3, 1)]


def test_columns_of_other_widths_are_joined_on_the_side_that_is_padded(padding_left, monkeypatch):
    monkeypatch.setattr(module, "CPU_BATCH_TOKENS", 12)
    rows = rows_of((WORDS[0], ONE), (WORDS[4], f"{TWO} {FOUR} {THREE}"), negatives=(WORDS[9], WORDS[8]))
    features = [padding_left.preprocess(rows[name]) for name in rows.column_names]
    usual = MultipleNegativesRankingLoss(padding_left, scale=20.0)(features, None)
    assert loss_of(padding_left, rows, [0, 1]).item() == pytest.approx(usual.item(), rel=1e-4)


def test_a_text_without_tokens_disturbs_nothing(model):
    features = tokenized(model, [ONE, "", f"{TWO} {THREE}"])
    with torch.inference_mode():
        found, alone = embed(model, features), embed(model, tokenized(model, [ONE, f"{TWO} {THREE}"]))
    torch.testing.assert_close(found[[0, 2]], alone)
    assert found[1].tolist() == [0] * 32


# Batches of neighbours

CLUSTERS, SIZE = 4, 5


def sampler(positives, vectors, group, batch=4, seed=0, epoch=0):
    rows = Dataset.from_dict({"anchor": [str(n) for n in range(len(positives))], "positive": positives})
    made = NeighbourhoodSampler(rows, vectors, group, batch_size=batch, drop_last=False, seed=seed)
    made.set_epoch(epoch)
    return made


def clustered(group, **more):
    """Return batches of `SIZE` over passages of which each cluster of `SIZE` points in a direction of its own."""
    vectors = np.repeat(np.eye(CLUSTERS), SIZE, axis=0)
    vectors = vectors + 0.01 * np.random.default_rng(0).normal(size=vectors.shape)
    return list(sampler([f"p{n}" for n in range(len(vectors))], vectors, group, batch=SIZE, **more))


def clusters(batch):
    return {row // SIZE for row in batch}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12), st.integers(1, 7), st.integers(0, 3))
def test_an_epoch_has_every_row_once_and_those_of_a_passage_together(numbers, group, batch, epoch):
    vectors = np.random.default_rng(1).normal(size=(10, 3))[numbers]
    made = sampler([f"p{n}" for n in numbers], vectors, group, batch, epoch=epoch)
    batches = list(made)
    order = [row for rows in batches for row in rows]
    assert sorted(order) == list(range(len(numbers)))
    assert len(batches) == len(made) and all(len(rows) == batch for rows in batches[:-1])
    changes = sum(numbers[one] != numbers[other] for one, other in itertools.pairwise(order))
    assert changes == len(set(numbers)) - 1


def test_neighbours_come_together():
    assert [len(clusters(batch)) for batch in clustered(SIZE)] == [1] * CLUSTERS
    assert {cluster for batch in clustered(SIZE) for cluster in clusters(batch)} == set(range(CLUSTERS))


def test_a_group_of_one_leaves_the_batches_to_chance():
    assert max(len(clusters(batch)) for batch in clustered(1)) > 2


def test_a_group_takes_the_nearest_of_those_that_are_left():
    angles = np.radians([0, 1, 40, 41, 80, 81])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for seed in range(5):
        batches = list(sampler([f"p{n}" for n in range(6)], vectors, 2, batch=2, seed=seed))
        assert sorted(map(sorted, batches)) == [[0, 1], [2, 3], [4, 5]]


def test_seed_and_epoch_decide_the_batches():
    assert clustered(3, seed=1, epoch=2) == clustered(3, seed=1, epoch=2)
    assert clustered(3, seed=1, epoch=2) != clustered(3, seed=1, epoch=1)
    assert clustered(3, seed=1, epoch=2) != clustered(3, seed=2, epoch=2)


class Watched(SharedPassagesLoss):
    """The loss, with a note of the rows of each batch."""

    def forward(self, sentence_features, labels):
        self.__dict__.setdefault("seen", []).append(labels.tolist())
        return super().forward(sentence_features, labels)


def test_the_trainer_draws_other_batches_every_epoch_and_tells_the_loss_their_rows(tiny_encoder, tmp_path):
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    rows = rows_of(*((WORDS[n], WORDS[n + 50]) for n in range(12))).add_column(ROW, list(range(12)))
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        batch_sampler=partial(NeighbourhoodSampler, vectors=np.random.default_rng(2).normal(size=(12, 3)), group=2),
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    loss = Watched(model, rows)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss).train()
    first, second = loss.seen[:3], loss.seen[3:]
    assert first != second
    assert all(sorted(row for batch in epoch for row in batch) == list(range(12)) for epoch in (first, second))
