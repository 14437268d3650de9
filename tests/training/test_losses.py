from copy import deepcopy

import numpy as np
import pytest
import torch
from datasets import Dataset
from planted_vocabulary import WORDS
from sentence_transformers import SentenceTransformer

from ragbench.errors import RagbenchError
from ragbench.training.contrast import ROW
from ragbench.training.losses import FROM_TEACHER, build_loss

NAMES = ("shared", "mnr", "cached_mnr", "gist", *FROM_TEACHER)
QUESTIONS, PASSAGES, OTHERS = (
    [" ".join(WORDS[start + 3 * n : start + 3 * n + 3]) for n in range(4)] for start in (0, 20, 40)
)


@pytest.fixture
def model(tiny_encoder):
    return SentenceTransformer(str(tiny_encoder), device="cpu").eval()


def rows_for(name):
    """Return rows with the columns that the loss needs."""
    rows = Dataset.from_dict({"anchor": QUESTIONS, "positive": PASSAGES, "negative_1": OTHERS})
    labels = [[0.9, 0.1], [0.8, 0.3], [0.2, 0.1], [0.5, 0.4]] if name in FROM_TEACHER else range(4)
    return rows.add_column(ROW, list(labels)) if name in (*FROM_TEACHER, "shared") else rows


def value(loss, model, rows):
    """Return the loss of all rows as one batch, given as the trainer gives them."""
    features = [model.preprocess(rows[name]) for name in rows.column_names if name != ROW]
    return loss(features, torch.tensor(rows[ROW]) if ROW in rows.column_names else None)


def in_batch(vectors, dimensions):
    """Return InfoNCE at scale 20 on the first dimensions of embeddings of questions, positives and negatives."""
    cut = vectors[..., :dimensions]
    asked, positive, negative = cut / np.linalg.norm(cut, axis=-1, keepdims=True)
    scores = 20 * asked @ np.concatenate([positive, negative]).T
    return float(np.mean(np.log(np.exp(scores).sum(axis=1)) - np.diag(scores)))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_down_its_gradient_moves_the_model_and_lowers_the_loss(model, name):
    rows = rows_for(name)
    loss = build_loss(name, model, rows, guide=deepcopy(model))
    before = value(loss, model, rows)
    before.backward()
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    assert 0 < value(loss, model, rows).item() < before.item()


@pytest.mark.parametrize("name", NAMES)
def test_only_the_direction_of_embeddings_counts_as_in_retrieval(model, name):
    longer = deepcopy(model)
    with torch.no_grad():
        [*_, last] = (layer for layer in longer.modules() if isinstance(layer, torch.nn.LayerNorm))
        last.weight *= 3
        last.bias *= 3
    rows = rows_for(name)
    plain, scaled = (value(build_loss(name, m, rows, guide=model), m, rows).item() for m in (model, longer))
    assert scaled == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "margin_mse"])
def test_the_scale_reaches_the_loss(model, name):
    rows = rows_for(name)
    low, high = (value(build_loss(name, model, rows, scale=scale), model, rows).item() for scale in (5.0, 20.0))
    assert low != pytest.approx(high, rel=1e-2)


def test_what_the_guide_takes_for_an_answer_is_no_negative(model):
    asked = WORDS[0]
    vectors = model.encode([asked, *WORDS[1:]], normalize_embeddings=True)
    order = np.argsort(-vectors[1:] @ vectors[0])
    near, far, other = (WORDS[1 + order[place]] for place in (0, 100, -1))
    rows = Dataset.from_dict({"anchor": [asked, other], "positive": [near, far]})
    guide = deepcopy(model)
    # The guide cannot tell the far word from the question.
    table = guide.get_parameter(next(name for name, _ in guide.named_parameters() if "word_embeddings" in name))
    one, same = guide.tokenizer.convert_tokens_to_ids([asked, far])
    with torch.no_grad():
        table[same] = table[one]
    without, within = (value(build_loss("gist", model, rows, guide=g), model, rows).item() for g in (model, guide))
    assert within < without - 0.01


@pytest.mark.parametrize("name", ["shared", "mnr", "cached_mnr"])
def test_a_matryoshka_loss_is_the_sum_over_embeddings_cut_to_each_dimension(model, name):
    rows = rows_for(name)
    loss = build_loss(name, model, rows, matryoshka=(8, 16))
    vectors = np.stack([model.encode(texts).astype(float) for texts in (QUESTIONS, PASSAGES, OTHERS)])
    expected = sum(in_batch(vectors, dimensions) for dimensions in (32, 16, 8))
    assert value(loss, model, rows).item() == pytest.approx(expected, rel=1e-4)


def test_the_full_dimension_may_be_named_or_not(model):
    rows = rows_for("mnr")
    named, unnamed = (value(build_loss("mnr", model, rows, matryoshka=m), model, rows) for m in ((32, 8), (8,)))
    assert named.item() == unnamed.item()


@pytest.mark.parametrize("matryoshka", [(64,), (16, 0), (-8,)])
def test_a_dimension_that_the_model_does_not_have_is_an_error(model, matryoshka):
    with pytest.raises(RagbenchError, match=r"retriever_matryoshka .*the model has 32 dimensions"):
        build_loss("mnr", model, rows_for("mnr"), matryoshka=matryoshka)


@pytest.mark.parametrize("name", FROM_TEACHER)
def test_an_order_of_passages_cannot_be_learned_from_one_passage(model, name):
    rows = rows_for(name).remove_columns("negative_1")
    with pytest.raises(RagbenchError, match=f"retriever_loss '{name}' .*set retriever_negatives above 0"):
        build_loss(name, model, rows)


def test_gist_takes_one_negative_at_most(model):
    rows = rows_for("gist").add_column("negative_2", OTHERS)
    with pytest.raises(RagbenchError, match="takes 1 negative at most; retriever_negatives is 2"):
        build_loss("gist", model, rows)


def test_an_unknown_loss_is_an_error_that_names_the_known_ones(model):
    with pytest.raises(RagbenchError, match=f"retriever_loss 'triplet' is unknown; use {', '.join(NAMES)}"):
        build_loss("triplet", model, rows_for("mnr"))
