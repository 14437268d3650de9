import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr, softmax

from ragbench.training.objectives import distillation, emdr2, entropy, passage_log_probs, rag_sequence, target_log_probs

SHAPE = (3, 4)
SIMILARITIES = arrays(np.float64, SHAPE, elements=st.floats(-1, 1))
LIKELIHOODS = arrays(np.float64, SHAPE, elements=st.floats(-60, -0.01))


def tensors(*values):
    return [torch.tensor(value, requires_grad=True) for value in values]


@given(SIMILARITIES, LIKELIHOODS)
def test_the_marginal_likelihood_is_the_sum_over_passages_of_both_probabilities(similarities, likelihoods):
    p = np.exp(similarities / 0.5) / np.exp(similarities / 0.5).sum(axis=1, keepdims=True)
    expected = -np.log((p * np.exp(likelihoods)).sum(axis=1)).mean()
    found = rag_sequence(passage_log_probs(torch.tensor(similarities), 0.5), torch.tensor(likelihoods))
    assert found.item() == pytest.approx(expected, rel=1e-9)


@given(SIMILARITIES, LIKELIHOODS)
def test_both_parts_of_the_marginal_likelihood_have_the_gradient_of_finite_differences(similarities, likelihoods):
    def loss(one, other):
        return rag_sequence(passage_log_probs(one, 0.5), other)

    assert torch.autograd.gradcheck(loss, tensors(similarities, likelihoods), atol=1e-5)


def test_the_passages_term_stands_once_whatever_the_length_of_the_answer():
    log_p = passage_log_probs(torch.tensor([[0.3, 0.1]]), 0.05)
    alike = [torch.full((1, 2), -0.5 * tokens) for tokens in (1, 40)]
    losses = [rag_sequence(log_p, answers).item() for answers in alike]
    assert losses == pytest.approx([0.5, 20.0])


@given(SIMILARITIES, LIKELIHOODS)
def test_emdr2_is_the_marginal_likelihood_without_a_gradient_for_the_generator(similarities, likelihoods):
    scores, answers = tensors(similarities, likelihoods)
    found = emdr2(passage_log_probs(scores, 0.5), answers)
    found.backward()
    assert answers.grad is None and torch.isfinite(scores.grad).all()
    assert found.item() == rag_sequence(passage_log_probs(scores, 0.5), answers).item()


@given(SIMILARITIES, LIKELIHOODS)
def test_distillation_is_the_divergence_in_the_direction_that_is_asked_for(similarities, likelihoods):
    scores, answers = tensors(similarities, likelihoods)
    p, q = softmax(similarities / 0.5, axis=1), softmax(likelihoods / 2.0, axis=1)
    log_p = passage_log_probs(scores, 0.5)
    found = [distillation(log_p, answers, 2.0, direction) for direction in ("to_generator", "to_retriever")]
    assert found[0].item() == pytest.approx(rel_entr(q, p).sum(axis=1).mean(), abs=1e-9)
    assert found[1].item() == pytest.approx(rel_entr(p, q).sum(axis=1).mean(), abs=1e-9)
    found[0].backward()
    assert answers.grad is None


def test_distillation_teaches_nothing_once_the_retriever_agrees():
    scores, answers = tensors([[0.2, 0.1, 0.4]], [[-0.2, -0.3, -0.0]])
    distillation(passage_log_probs(scores, 0.1), answers, 0.1).backward()
    assert torch.allclose(scores.grad, torch.zeros(1, 3, dtype=scores.dtype), atol=1e-9)


def test_the_preferred_passage_gains():
    scores, answers = tensors([[0.2, 0.2, 0.2]], [[-2.0, -0.1, -2.0]])
    for loss in (
        distillation(passage_log_probs(scores, 0.05), answers, 0.1),
        rag_sequence(passage_log_probs(scores, 0.05), 10 * answers),
    ):
        [gradient] = torch.autograd.grad(loss, [scores])
        assert gradient[0].argmin() == 1 and gradient[0, 1] < 0 < gradient[0, 0]


def test_preferences_among_unlikely_answers_do_not_underflow():
    # Sums over forty tokens, exponentiated one by one, would all be 0.
    target = target_log_probs(torch.tensor([[-400.0, -360.0, -400.0]]) / 40, 0.1).exp()
    assert target[0, 1] > 0.99 and torch.isfinite(target).all()


def test_entropy_tells_nothing_is_told_apart_from_all_is_decided():
    assert entropy(torch.full((2, 4), -math.log(4))) == pytest.approx(math.log(4))
    assert entropy(torch.tensor([[0.0, -60.0]])) == pytest.approx(0)
