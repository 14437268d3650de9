"""Examples for training a generator, made up on the spot."""

from datasets import Dataset

from ragbench.generation.prompts import REFUSAL
from ragbench.training.examples import FEATURES

WORDS = ["bab", "dad", "gag", "kak", "lal", "mam", "nan", "pap", "rar", "sas"]


def example(number: int, answer: str | None = None, **changes) -> dict:
    """Return a row as 02_data_prep writes it: the answer is nearly always the same, so quickly learned."""
    word = WORDS[number % len(WORDS)]
    row = {
        "prompt": [
            {"role": "system", "content": "tat"},
            {"role": "user", "content": f"1. [p{number}] {word} {'mim ' * (number % 3)}\n\nsis {word}?"},
        ],
        "completion": [{"role": "assistant", "content": f"mim nan {word} [p{number}]" if answer is None else answer}],
        "query_id": f"q{number}",
        "split": "train",
        "kind": "gold retrieved",
        "context_ids": [f"p{number}"],
        "gold_ids": [f"p{number}"],
    }
    return row | changes


def refused(number: int) -> dict:
    return example(number, REFUSAL, kind="gold left out", gold_ids=[])


def dataset(rows: list[dict]) -> Dataset:
    return Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)
