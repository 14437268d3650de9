"""Examples for the generator as token ids: the very prompt that it will be given, and the answer it should give."""

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ragbench.errors import RagbenchError
from ragbench.evaluation.answer_metrics import refuses
from ragbench.generation.local import render, render_answer

IGNORED = -100
"""The label of a token that no loss is taken of."""
_FEATURES = Features(
    {
        "input_ids": List(Value("int64")),
        "labels": List(Value("int64")),
        "query_id": Value("string"),
        "weight": Value("float32"),
    }
)


def answer_rows(
    examples: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    longest: int | None,
    refusal_weight: float = 1.0,
) -> Dataset:
    """Return columns input_ids, labels (`IGNORED` on the prompt), query_id and weight, a row an example.

    The prompt's tokens are those that `generation.local` answers. The answer ends as an assistant's turn does in the
    model's chat template, and always with a token at which decoding stops.

    Args:
        examples: with the columns of `training.examples.FEATURES`.
        ends: the tokens at which decoding stops.
        longest: tokens that the model can read, prompt and answer together; None if that is not known.
        refusal_weight: weight of the examples that expect a refusal; that of the others is 1.

    Raises:
        RagbenchError: an example has an empty answer or is too long, or there is no end token.
    """
    rows: dict[str, list[Any]] = {name: [] for name in _FEATURES}
    for example in examples:
        prompt, answer = answer_tokens(example, tokenizer, ends, longest)
        rows["input_ids"].append(prompt + answer)
        rows["labels"].append([IGNORED] * len(prompt) + answer)
        rows["query_id"].append(example["query_id"])
        rows["weight"].append(refusal_weight if refuses(example["completion"][-1]["content"]) else 1.0)
    return Dataset.from_dict(rows, features=_FEATURES)


def answer_tokens(
    example: dict[str, Any], tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], longest: int | None
) -> tuple[list[int], list[int]]:
    """Return the tokens of an example's prompt and of its answer, see `answer_rows`.

    Raises:
        RagbenchError: the answer is empty, both are too long together, or there is no end token.
    """
    if not ends:
        raise RagbenchError(
            "Neither the tokenizer nor the model's settings name an end token: a model trained so would never "
            "stop. Set eos_token in its tokenizer_config.json."
        )
    prompt, answer = prompt_tokens(example, tokenizer), _turn(example, tokenizer)
    if answer[-1] not in ends:
        answer.append(tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0])
    if longest is not None and len(prompt) + len(answer) > longest:
        raise RagbenchError(
            f"The example of query '{example['query_id']}' takes {len(prompt) + len(answer)} tokens; the model reads "
            f"{longest}. Run 02_data_prep with a lower generator_max_context_tokens or generator_contexts."
        )
    return prompt, answer


def prompt_tokens(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of an example's prompt, as `generation.local` gives them to the model."""
    return list(tokenizer(render(tokenizer, example["prompt"]), add_special_tokens=False)["input_ids"])


def _turn(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    answer = example["completion"][-1]["content"]
    if not answer.strip():
        raise RagbenchError(
            f"The example of query '{example['query_id']}' expects an empty answer. Give the question a reference "
            "answer, or none at all, and run 02_data_prep again."
        )
    turn = render_answer(tokenizer, example["prompt"], answer)
    return list(tokenizer(turn, add_special_tokens=False)["input_ids"])
