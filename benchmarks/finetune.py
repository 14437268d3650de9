"""Fine-tuning a generator: ragbench's default against plain `SFTTrainer`, and what it does for the answers.

Speed: the same rows, model, rank, batch and number of steps; `plain` is TRL's trainer and PEFT's adapter with their own
defaults otherwise. Tokens are those of the rows, prompts included, without padding. Both end with the loss on the same
dev rows.

Answers: the default is trained on some questions of train, chosen on dev, and answers test; token F1 and more, paired
with the model as it came. Passages are those that BM25 finds, in training with the gold passages among them.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from harness import arguments, finish, result
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ragbench.collection.load import load_collection
from ragbench.collection.schema import Collection
from ragbench.devices import choose_device, choose_dtype
from ragbench.evaluation.comparison import compare
from ragbench.evaluation.evaluate import System, choose_questions, evaluate
from ragbench.generation.generate import Generator
from ragbench.generation.local import end_tokens
from ragbench.models import resolve_model
from ragbench.retrieval.encoder import open_encoder
from ragbench.retrieval.retrieve import Retriever
from ragbench.training.answer_rows import answer_rows
from ragbench.training.answer_trainer import AnswerTrainer, padding
from ragbench.training.answering import CRITERION, Exam
from ragbench.training.examples import Mix, split_examples, to_dataset
from ragbench.training.generator import BOOKKEEPING, fine_tune
from ragbench.training.generator_model import Recipe, open_for_training, plain_model

MODEL = "SmolLM2-135M-Instruct"
DEVICE = choose_device()
RETRIEVER = Retriever(method="bm25")
GENERATOR = Generator(model=MODEL, contexts=3, max_context_tokens=512, device=DEVICE)
RECIPE = Recipe(MODEL, depth=0.5, refusal_weight=0.25, device=DEVICE)
BATCH, ROWS, RATE, EPOCHS = 8, 2, 1e-3, 2.0
ANSWERS = "[\\s\\S]*"  # these collections have no house style


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a collection in the BEIR layout with train, dev and test")
    parser.add_argument("--questions", type=int, default=320, help="train questions")
    parser.add_argument("--test-questions", type=int, default=150)
    parser.add_argument("--steps", type=int, default=12, help="steps of the comparison of speed; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--rank", type=int, default=RECIPE.rank)
    parser.add_argument("--judge-on", default="test", choices=["dev", "test"])


def settings(folder: str, **changes: Any) -> SFTConfig:
    """Return the trainer's arguments as notebooks/04_generator.ipynb makes them with its defaults."""
    values = {
        "per_device_train_batch_size": ROWS,
        "per_device_eval_batch_size": ROWS,
        "gradient_accumulation_steps": BATCH // ROWS,
        "learning_rate": RATE,
        "num_train_epochs": EPOCHS,
        "warmup_steps": 0.1,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "group_by_length",
        "bf16": choose_dtype(DEVICE) == torch.bfloat16,
        "use_cpu": DEVICE == "cpu",
        "eval_strategy": "steps",
        "eval_steps": 0.5,
        "save_strategy": "steps",
        "save_steps": 0.5,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{CRITERION}",
        **BOOKKEEPING,
    }
    return SFTConfig(folder, **{**values, **changes})


class Stopwatch(TrainerCallback):
    """The seconds and tokens of the steps alone, the first of which warms up and is left out."""

    def __init__(self, trainer: SFTTrainer) -> None:
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        train = trainer.training_step

        def counted(model: Any, inputs: Any, *more: Any) -> Any:
            self._read += int(inputs["attention_mask"].sum())
            return train(model, inputs, *more)

        trainer.training_step = counted  # type: ignore[method-assign]
        trainer.add_callback(self)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started, self._read = time.perf_counter(), 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)
        self.tokens.append(self._read)

    @property
    def rate(self) -> float:
        return sum(self.tokens[1:]) / sum(self.seconds[1:])


def examples(
    data: Collection, split: str, questions: int, mix: Mix, retriever: Retriever = RETRIEVER, seed: int = 0
) -> Dataset:
    """Return the examples of so many questions of a split, drawn at random; of all for 0."""
    chosen = choose_questions(data, [split], questions, seed)[split]
    part = Collection(
        data.name, data.corpus, {query.id: query for query in chosen},
        {split: {query.id: data.qrels[split][query.id] for query in chosen}},
    )  # fmt: skip
    return to_dataset(split_examples(part, [split], retriever, GENERATOR, mix))


def speed(train: Dataset, dev: Dataset, steps: int, rank: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for variant, trainer in (("plain", plain_trainer), ("ragbench", our_trainer)):
        with tempfile.TemporaryDirectory() as folder:
            made = trainer(train, dev, steps, rank, seed, folder)
            watch = Stopwatch(made)
            made.train()
            loss = made.evaluate()["eval_loss"]
        rows.append({"variant": variant, "steps": steps, "tokens per second": watch.rate, "dev loss": loss})
        print(rows[-1], flush=True)
    return rows


def plain_trainer(train: Dataset, dev: Dataset, steps: int, rank: int, seed: int, folder: str) -> SFTTrainer:
    columns = ["prompt", "completion"]
    return SFTTrainer(
        model=str(resolve_model(MODEL)),
        args=SFTConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            use_cpu=DEVICE == "cpu",
            report_to="none",
            seed=seed,
        ),
        train_dataset=train.select_columns(columns),
        eval_dataset=dev.select_columns(columns),
        peft_config=LoraConfig(r=rank, task_type="CAUSAL_LM"),
    )


def our_trainer(train: Dataset, dev: Dataset, steps: int, rank: int, seed: int, folder: str) -> SFTTrainer:
    base = resolve_model(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(base)
    network = open_for_training(replace(RECIPE, rank=rank, alpha=2 * rank), base, seed)
    ends = end_tokens(plain_model(network), tokenizer)
    return AnswerTrainer(
        model=network,
        args=settings(
            folder, max_steps=steps, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, seed=seed
        ),
        train_dataset=answer_rows(train, tokenizer, ends, None, RECIPE.refusal_weight),
        eval_dataset=answer_rows(dev, tokenizer, ends, None),
        data_collator=padding(tokenizer.pad_token_id),
        processing_class=tokenizer,
        exam=Exam(dev.select(range(1)), max_new_tokens=1),
    )


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0], options)
    questions, test, steps = (16, 8, 2) if chosen.quick else (chosen.questions, chosen.test_questions, chosen.steps)
    data = load_collection(str(chosen.folder.resolve()))
    mix = Mix(contexts=GENERATOR.contexts, seed=chosen.seed)
    sizes = {"train": questions, "dev": 8 if chosen.quick else 60}
    train, dev = (examples(data, split, size, mix, seed=chosen.seed) for split, size in sizes.items())
    rows = speed(train, dev, steps, chosen.rank, chosen.seed) if steps else []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RAGBENCH_CACHE"] = cache
        started = time.perf_counter()
        tuned = fine_tune(
            replace(RECIPE, rank=chosen.rank, alpha=2 * chosen.rank),
            settings("unused", learning_rate=chosen.rate, num_train_epochs=chosen.epochs, seed=chosen.seed),
            train,
            Exam(dev, GENERATOR.max_new_tokens, ANSWERS),
        )
        seconds = time.perf_counter() - started
        encoder = open_encoder("all-MiniLM-L6-v2", device=DEVICE)
        asked = choose_questions(data, [chosen.judge_on], test, chosen.seed)
        systems = {"base": GENERATOR, "tuned": replace(GENERATOR, model=str(tuned.folder))}
        scores = [
            evaluate(System(name, RETRIEVER, each), data, asked, encoder=encoder, answer_format=ANSWERS).scores
            for name, each in systems.items()
        ]
    table = pd.concat(scores, ignore_index=True)
    found = {c.metric: c for c in compare(table, "base", "tuned", seed=chosen.seed)}
    means = table.groupby(["system", "metric"])["value"].mean()
    for name in systems:
        rows.append({"variant": name, **{m: float(means[name, m]) for m in ("answer_f1", "answer_em", "refusal")}})
    rows[-1] |= {"seconds": seconds, "dev before": tuned.before[CRITERION], "dev at best": tuned.best[CRITERION]}
    gain = found["answer_f1"]
    low = gain.ci[0] if gain.ci else float("nan")
    results = [result(f"low end of the gain in token F1 ({gain.difference:+.3f})", low, 0.0, float.__gt__)]
    if steps:
        plain, ours = rows[0], rows[1]
        ratio = ours["tokens per second"] / plain["tokens per second"]
        results += [
            result("tokens a second over those of plain SFTTrainer", ratio, 2.0, float.__ge__),
            result("dev loss over its own", ours["dev loss"] / plain["dev loss"], 1.0, float.__le__),
        ]
    finish(Path(__file__).stem, chosen, rows, results)


if __name__ == "__main__":
    main()
