import pytest
import torch
from transformers import AutoModelForCausalLM

from ragbench.training.answer_likelihood import Row, answer_log_likelihoods

ROWS = [Row((5, 6, 7), (8, 9)), Row((5,), (10, 11, 12)), Row((20, 21, 22, 23, 24, 25), (8,)), Row((5, 6, 7), (9, 8))]


@pytest.fixture
def network(tiny_generator):
    return AutoModelForCausalLM.from_pretrained(tiny_generator, dtype=torch.float32).eval()


def plainly(network, row: Row, shift: int = 1) -> torch.Tensor:
    """One forward pass, all logits: the answer's tokens under the logits `shift` places before them."""
    ids = torch.tensor([[*row.prompt, *row.answer]])
    log_p = torch.log_softmax(network(input_ids=ids).logits[0].float(), dim=-1)
    return sum(log_p[len(row.prompt) + place - shift, token] for place, token in enumerate(row.answer))


@pytest.mark.parametrize("budget", [1, 20, 10_000])
def test_the_batched_likelihoods_are_those_of_single_passes_in_the_order_of_the_rows(network, monkeypatch, budget):
    monkeypatch.setattr("ragbench.training.answer_likelihood.CPU_BATCH_TOKENS", budget)
    found = answer_log_likelihoods(network, ROWS)
    assert found.tolist() == pytest.approx([plainly(network, row).item() for row in ROWS], rel=1e-4)


def test_logits_read_one_place_late_would_be_seen(network):
    found = answer_log_likelihoods(network, ROWS[:1]).item()
    assert abs(found - plainly(network, ROWS[0], shift=0).item()) > 0.01


def test_gradients_are_those_of_single_passes(network):
    weight = network.get_input_embeddings().weight
    [found] = torch.autograd.grad(answer_log_likelihoods(network, ROWS).sum(), [weight])
    [expected] = torch.autograd.grad(sum(plainly(network, row) for row in ROWS), [weight])
    assert torch.allclose(found, expected, atol=1e-4)


def test_no_gradient_is_kept_where_none_is_wanted(network):
    with torch.no_grad():
        assert not answer_log_likelihoods(network, ROWS).requires_grad
