"""How a generator answers dev's examples: measured before, during and after its training."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragbench.evaluation import answer_metrics as metrics
from ragbench.generation.decoding import can_decode, greedy
from ragbench.generation.local import end_tokens, greedy_by_generate
from ragbench.training.answer_rows import prompt_tokens

CRITERION, CRITERION_IN_WORDS = "answers_and_refusals", "answers and refusals"
"""The metric by which dev chooses a checkpoint: the harmonic mean of `answer_f1` and `refusal`. The plain mean of the
F1 with what is expected, a refusal included, would choose a model that always refuses: it is right word for word on
every example that expects one."""


@dataclass(frozen=True)
class Exam:
    """Dev's examples, and how they are answered.

    Attributes:
        examples: with the columns of `training.examples.FEATURES`.
        max_new_tokens: length limit of an answer.
        answer_format: the house style, see `answer_metrics.conforms`.
        batch_rows: prompts that are answered together.
    """

    examples: Dataset
    max_new_tokens: int = 64
    answer_format: str = metrics.HOUSE_STYLE
    batch_rows: int = 32


def answers(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, exam: Exam) -> list[str]:
    """Return the greedy answer to each example, in their order. The network is as it is, adapters and all."""
    prompts = [prompt_tokens(example, tokenizer) for example in exam.examples]
    order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
    ends = end_tokens(network, tokenizer)
    decode = greedy if can_decode(network) else greedy_by_generate
    found = [""] * len(prompts)
    for start in range(0, len(order), exam.batch_rows):
        part = order[start : start + exam.batch_rows]
        produced = decode(network, [prompts[place] for place in part], max_new_tokens=exam.max_new_tokens, ends=ends)
        for place, row in zip(part, produced, strict=True):
            found[place] = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
    return found


def measure(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, exam: Exam) -> dict[str, float]:
    """Answer the examples and return the means of what is measured, see `scores`."""
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            found = answers(network, tokenizer, exam)
    finally:
        network.train(training)
    return scores(exam, found)


def scores(exam: Exam, found: Sequence[str]) -> dict[str, float]:
    """Return the means over the examples; a metric that applies to none is left out.

    ``answer_f1``, ``citation_precision``: of the examples whose passages tell the answer. ``format``, ``refusal`` (to
    refuse where they do not, and only there): of all. `CRITERION`: the harmonic mean of ``answer_f1`` and ``refusal``.
    """
    values: dict[str, list[float]] = {}
    for example, answer in zip(exam.examples, found, strict=True):
        expected = example["completion"][-1]["content"]
        answerable = not metrics.refuses(expected)
        row: dict[str, Any] = {
            "answer_f1": metrics.token_f1(answer, expected) if answerable else None,
            "citation_precision": metrics.citation_precision(answer, example["gold_ids"]) if answerable else None,
            "format": metrics.conforms(answer, exam.answer_format),
            "refusal": metrics.refusal(answer, answerable),
        }
        for name, value in row.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    means = {name: sum(each) / len(each) for name, each in values.items()}
    return {CRITERION: harmonic_mean([means[name] for name in ("answer_f1", "refusal") if name in means])} | means
