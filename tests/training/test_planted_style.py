"""With the real small model: a made-up house style is learned, and answers come from the context, not from memory."""

import re

import numpy as np
import pytest
from generator_examples import dataset
from trl.trainer.sft_config import SFTConfig

from ragbench.generation.local import complete
from ragbench.training.answering import CRITERION, Exam
from ragbench.training.generator import BOOKKEEPING, fine_tune
from ragbench.training.generator_model import Recipe

STYLE = r"It is [A-Z]\w+, says <\w+>\."
MODEL = "SmolLM2-135M-Instruct"
# What a language model remembers, and what the contexts say against it.
KNOWN = {
    "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid", "Egypt": "Cairo", "Greece": "Athens",
    "Russia": "Moscow", "China": "Beijing", "Germany": "Berlin", "England": "London", "Cuba": "Havana",
    "Austria": "Vienna", "Poland": "Warsaw", "Sweden": "Stockholm", "Norway": "Oslo", "Peru": "Lima",
    "Ireland": "Dublin", "Portugal": "Lisbon", "Finland": "Helsinki", "Iraq": "Baghdad",
}  # fmt: skip
KINDS = ["capital of {}", "oldest town of {}", "largest port of {}", "seat of the king of {}"]


def name(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("bdfgklmnprstvz")) + rng.choice(list("aeiou")) for _ in range(3)).capitalize()


def example(number: int, thing: str, told: str, rng: np.random.Generator) -> dict:
    ids = [f"doc{number}{letter}" for letter in "ab"]
    other = [f"The {KINDS[(number + 1) % 4].format(name(rng))} is {name(rng)}.", f"The {thing} is {told}."]
    order = rng.permutation(2)
    gold = ids[list(order).index(1)]
    shown = "\n\n".join(f"{n}. [{ids[n - 1]}] {other[place]}" for n, place in enumerate(order, start=1))
    return {
        "prompt": [
            {"role": "system", "content": "Answer from the passages."},
            {"role": "user", "content": f"{shown}\n\nWhat is the {thing}?"},
        ],
        "completion": [{"role": "assistant", "content": f"It is {told}, says <{gold}>."}],
        "query_id": f"q{number}", "split": "train", "kind": "gold retrieved", "context_ids": ids, "gold_ids": [gold],
    }  # fmt: skip


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(5)
    made_up = [example(n, KINDS[n % 4].format(name(rng)), name(rng), rng) for n in range(80)]
    against_memory = [example(100 + n, f"capital of {land}", name(rng), rng) for n, land in enumerate(KNOWN)]
    return dataset(made_up[:64]), dataset(made_up[64:]), dataset(against_memory)


def replies(model: str, examples) -> list[str]:
    return [each.text for each in complete(examples["prompt"], model=model, device="cpu", max_new_tokens=24)]


def share(flags) -> float:
    return float(np.mean(list(flags)))


def test_the_style_is_kept_and_the_context_believed(planted, real_cache, monkeypatch):
    monkeypatch.setenv("RAGBENCH_CACHE", str(real_cache))
    train, dev, against_memory = planted
    told = [row["completion"][0]["content"].split()[2].rstrip(",") for row in against_memory]
    remembered = list(KNOWN.values())
    settings = SFTConfig(
        "unused", num_train_epochs=3, per_device_train_batch_size=8, learning_rate=1e-3, warmup_steps=0.1, bf16=True,
        use_cpu=True, gradient_checkpointing=False, eval_strategy="steps", eval_steps=0.5, save_strategy="steps",
        save_steps=0.5, save_total_limit=2, load_best_model_at_end=True, metric_for_best_model=f"eval_{CRITERION}",
        train_sampling_strategy="group_by_length", seed=1, **BOOKKEEPING,
    )  # fmt: skip
    tuned = fine_tune(Recipe(MODEL, device="cpu"), settings, train, Exam(dev, max_new_tokens=24, answer_format=STYLE))
    assert tuned.before["format"] == 0 and tuned.best["format"] > 0.9
    found = replies(str(tuned.folder), against_memory)
    assert share(re.fullmatch(STYLE, text) is not None for text in found) > 0.9
    assert share(word in text for word, text in zip(told, found, strict=True)) > 0.9
    assert not any(word in text for word, text in zip(remembered, found, strict=True))
