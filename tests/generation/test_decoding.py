from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedModel,
)

from ragbench.generation import decoding
from ragbench.generation.decoding import can_decode, greedy

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 32, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ORDINARY = {
    "llama": LlamaConfig(**SIZES),
    "mistral without a window": MistralConfig(**SIZES, sliding_window=None),
    "gpt2, with learned positions": GPT2Config(
        vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
}
OTHER_CACHES = {
    "mistral with a window": MistralConfig(**SIZES, sliding_window=8),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=8),
    "mamba": MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=2),
}


def build(config) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return with_attention(AutoModelForCausalLM.from_config(config).float().eval())


def with_attention(model: PreTrainedModel) -> PreTrainedModel:
    # With weights as small as the initial ones the next token depends on little but the last one.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def network(tiny_generator: Path) -> PreTrainedModel:
    return with_attention(AutoModelForCausalLM.from_pretrained(tiny_generator, dtype=torch.float32).eval())


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    chance = torch.Generator().manual_seed(1)
    return [torch.randint(2, 400, (size,), generator=chance).tolist() for size in (61, 40, 40, 23, 22, 9, 3, 1)]


def row_by_row(model: PreTrainedModel, prompts: list[list[int]], new: int, ends: list[int]) -> list[list[int]]:
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        settings = {"do_sample": False, "max_new_tokens": new, "eos_token_id": ends or None, "pad_token_id": 0}
        rows.append(model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist())
    return rows


@pytest.fixture(scope="module")
def ends(network: PreTrainedModel, prompts: list[list[int]]) -> list[int]:
    """Return tokens that end the rows at many different steps, some at the first and some never."""
    rows = row_by_row(network, prompts, 20, [])
    found = [rows[0][7], rows[2][3], rows[4][0], rows[6][12]]
    lengths = {len(row) for row in row_by_row(network, prompts, 20, found)}
    assert len(lengths) >= 4 and 1 in lengths and 20 in lengths, lengths
    return found


@pytest.mark.parametrize("new", [1, 2, 3, 24])
def test_tokens_are_those_of_generate_row_by_row(network: PreTrainedModel, prompts: list[list[int]], new: int):
    expected = row_by_row(network, prompts, new, [])
    assert {len(row) for row in expected} == {new}
    assert greedy(network, prompts, max_new_tokens=new, ends=[]) == expected


def test_the_models_of_these_tests_look_further_back_than_the_last_token(network: PreTrainedModel, prompts):
    changed = [[*prompt[:-6], 5, *prompt[-5:]] for prompt in prompts[:5]]
    before, after = (greedy(network, some, max_new_tokens=8, ends=[]) for some in (prompts[:5], changed))
    assert sum(a != b for a, b in zip(before, after, strict=True)) >= 4


def test_each_row_ends_with_its_end_token_or_at_the_limit(network: PreTrainedModel, prompts, ends: list[int]):
    rows = greedy(network, prompts, max_new_tokens=20, ends=ends)
    assert rows == row_by_row(network, prompts, 20, ends)
    assert all(row[-1] in ends or len(row) == 20 for row in rows)
    assert not any(token in ends for row in rows for token in row[:-1])


def test_all_rows_may_end_at_the_first_token(network: PreTrainedModel, prompts):
    rows = greedy(network, prompts, max_new_tokens=20, ends=range(400))
    assert rows == row_by_row(network, prompts, 1, [])


def test_equal_prompts_end_at_once_in_the_middle(network: PreTrainedModel, prompts):
    alone = row_by_row(network, [prompts[3]], 20, [])[0]
    end = alone[6]
    expected = alone[: alone.index(end) + 1]
    assert greedy(network, [prompts[3]] * 5, max_new_tokens=20, ends=[end]) == [expected] * 5


@pytest.mark.parametrize("row", [0, 7], ids=["long", "of one token"])
def test_a_single_prompt_works(network: PreTrainedModel, prompts, ends: list[int], row: int):
    expected = row_by_row(network, [prompts[row]], 20, ends)
    assert greedy(network, [prompts[row]], max_new_tokens=20, ends=ends) == expected


def test_the_order_of_the_prompts_changes_nothing(network: PreTrainedModel, prompts, ends: list[int]):
    order = [7, 0, 5, 3, 1, 6, 2, 4]
    rows = greedy(network, [prompts[i] for i in order], max_new_tokens=20, ends=ends)
    expected = row_by_row(network, prompts, 20, ends)
    assert rows == [expected[i] for i in order]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0], ids=["never", "late", "usual", "at once"])
def test_dropping_ended_rows_does_not_change_the_others(network, prompts, ends: list[int], monkeypatch, share: float):
    monkeypatch.setattr(decoding, "DROP_BELOW", share)
    assert greedy(network, prompts, max_new_tokens=20, ends=ends) == row_by_row(network, prompts, 20, ends)


@pytest.mark.parametrize("budget", [1, 50, 100, 10**6], ids=["row by row", "small", "some", "all at once"])
def test_reading_in_parts_of_any_size_gives_the_same(network, prompts, ends: list[int], monkeypatch, budget: int):
    monkeypatch.setattr(decoding, "CPU_PREFILL_TOKENS", budget)
    assert greedy(network, prompts, max_new_tokens=20, ends=ends) == row_by_row(network, prompts, 20, ends)


@pytest.fixture
def shapes(network: PreTrainedModel) -> Iterator[list[tuple[int, int]]]:
    """Return the (rows, tokens) that the network reads, call by call."""
    seen: list[tuple[int, int]] = []
    hook = network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


def test_no_more_padded_tokens_are_read_at_once_than_the_budget_unless_one_prompt_has_more(
    network, prompts, monkeypatch, shapes: list[tuple[int, int]]
):
    monkeypatch.setattr(decoding, "CPU_PREFILL_TOKENS", 50)
    greedy(network, prompts, max_new_tokens=1, ends=[])
    assert shapes == [(1, 61), (1, 40), (1, 40), (2, 23), (3, 9)]  # for prompts of 61, 40, 40, 23, 22, 9, 3, 1


def test_rows_that_have_ended_are_no_longer_computed(network, prompts, ends: list[int], shapes: list[tuple[int, int]]):
    longest = sum(len(row) == 20 for row in row_by_row(network, prompts, 20, ends))
    shapes.clear()
    greedy(network, prompts, max_new_tokens=20, ends=ends)
    assert longest <= shapes[-1][0] < len(prompts)


@given(st.lists(st.lists(st.integers(2, 399), min_size=1, max_size=20), min_size=1, max_size=6), st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_any_prompts_give_the_tokens_of_generate(network: PreTrainedModel, prompts: list[list[int]], new: int):
    ends = [7, 100, 200, 300]
    assert greedy(network, prompts, max_new_tokens=new, ends=ends) == row_by_row(network, prompts, new, ends)


@pytest.mark.parametrize("name", ORDINARY)
def test_models_with_an_ordinary_cache_can_be_decoded_and_rightly(name: str):
    model = build(ORDINARY[name])
    prompts = [[5, 9, 33, 7, 21, 8, 40, 3, 12, 50, 6], [44, 5, 17], [30]]
    assert can_decode(model)
    assert greedy(model, prompts, max_new_tokens=12, ends=[]) == row_by_row(model, prompts, 12, [])


@pytest.mark.parametrize("name", OTHER_CACHES)
def test_models_with_another_kind_of_cache_are_left_to_generate(name: str):
    assert not can_decode(build(OTHER_CACHES[name]))
