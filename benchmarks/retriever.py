"""Fine-tuning a retriever: ragbench's default against the recipe that everybody copies, on the same questions.

`plain`: MultipleNegativesRanking, batch 32, learning rate 2e-5, warm-up 10 %, 2 epochs, in-batch negatives, float32.
`plain + mined`: the same with one hard negative a pair from the library's own `mine_hard_negatives`. `ragbench`: the
defaults that the notebooks declare, on the labelled pairs, in bfloat16 where that is faster (`dtype: auto`). All are
judged on test over the whole corpus in float32, once each, and fused with BM25. Seconds hold everything after the base
model's evaluation: mining, looks at dev, training.

To try other settings of ragbench's, `--split dev --variants ragbench --set retriever_neighbourhood=1`.

Rows are appended to FILE.jsonl as they are measured; an interrupted benchmark goes on where it was.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from harness import arguments, finish, result
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import mine_hard_negatives

from ragbench.collection.load import load_collection
from ragbench.collection.schema import Collection, passage_texts
from ragbench.devices import choose_device, choose_dtype
from ragbench.evaluation.evaluate import choose_questions, retrieval_scores
from ragbench.models import resolve_model
from ragbench.retrieval.retrieve import Retriever
from ragbench.training.dev import choose_dev, dev_evaluator
from ragbench.training.pairs import Pair, labelled_pairs
from ragbench.training.retriever import BOOKKEEPING, Recipe, fine_tune
from ragbench.workbench.params import declared_in

ROOT = Path(__file__).resolve().parents[1]
MODEL = "all-MiniLM-L6-v2"
DEVICE = choose_device()
BASE = Retriever(model=MODEL, dtype="float32")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a collection in the BEIR layout with train, dev and test")
    parser.add_argument("--questions", type=int, default=300, help="train questions of each seed; 0 for all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--split", default="test", choices=["dev", "test"], help="what to judge on")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="for ragbench, as JSON")


def sampled(pairs: list[Pair], questions: int, seed: int) -> list[Pair]:
    names = sorted({pair.query_id for pair in pairs})
    chosen = set(names if not questions else random.Random(seed).sample(names, min(questions, len(names))))
    return [pair for pair in pairs if pair.query_id in chosen]


def plain(data: Collection, pairs: list[Pair], seed: int, folder: Path) -> Path:
    rows = Dataset.from_dict({"anchor": [p.question for p in pairs], "positive": [p.positive for p in pairs]})
    return train_plainly(rows, seed, folder)


def plain_mined(data: Collection, pairs: list[Pair], seed: int, folder: Path) -> Path:
    rows = Dataset.from_dict({"anchor": [p.question for p in pairs], "positive": [p.positive for p in pairs]})
    mined = mine_hard_negatives(
        rows,
        SentenceTransformer(str(resolve_model(MODEL)), device=DEVICE),
        corpus=passage_texts(data).to_pylist(),
        relative_margin=0.05,
        num_negatives=1,
        verbose=False,
    )
    return train_plainly(mined, seed, folder)


def train_plainly(rows: Dataset, seed: int, folder: Path) -> Path:
    torch.manual_seed(seed)
    model = SentenceTransformer(str(resolve_model(MODEL)), device=DEVICE)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            str(folder / "trainer"),
            num_train_epochs=2,
            per_device_train_batch_size=32,
            learning_rate=2e-5,
            warmup_steps=0.1,
            save_strategy="no",
            report_to="none",
            use_cpu=DEVICE == "cpu",
            seed=seed,
        ),
        train_dataset=rows,
        loss=MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


def ragbench_with(changed: dict[str, Any], data: Collection, pairs: list[Pair], seed: int, folder: Path) -> Path:
    """Train as notebooks/03_retriever.ipynb does with its defaults, but for what is changed."""
    default = {name: p.default for name, p in declared_in(ROOT / "notebooks" / "03_retriever.ipynb").items()}
    if unknown := changed.keys() - default.keys():
        raise SystemExit(f"--set names no parameter of 03_retriever: {', '.join(sorted(unknown))}.")
    default |= changed
    dev, left = choose_dev(data, pairs, seed)
    rows = Dataset.from_dict({"anchor": [p.question for p in left], "positive": [p.positive for p in left]})
    recipe = Recipe(
        model=MODEL,
        max_tokens=default["retriever_max_tokens"],
        loss=default["retriever_loss"],
        scale=default["retriever_scale"],
        neighbourhood=default["retriever_neighbourhood"],
        blends=tuple(default["retriever_blends"]),
        device=DEVICE,
    )
    tuned = fine_tune(
        recipe,
        SentenceTransformerTrainingArguments(
            per_device_train_batch_size=default["retriever_batch"],
            num_train_epochs=default["retriever_epochs"][0],
            learning_rate=default["retriever_learning_rates"][0],
            lr_scheduler_type="linear",
            warmup_steps=default["retriever_warmup"],
            weight_decay=default["retriever_weight_decay"],
            max_grad_norm=1.0,
            bf16=choose_dtype(DEVICE, default["dtype"]) == torch.bfloat16,
            use_cpu=DEVICE == "cpu",
            eval_strategy="steps",
            eval_steps=default["retriever_evaluate_every"],
            save_strategy="steps",
            save_steps=default["retriever_evaluate_every"],
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_dev_cosine_ndcg@10",
            **BOOKKEEPING,
            seed=seed,
        ),
        rows,
        dev_evaluator(data, dev, BASE, default["retriever_dev_passages"], seed),
        patience=default["retriever_patience"],
    )
    return tuned.folder


Variant = Callable[[Collection, list[Pair], int, Path], Path]
VARIANTS: dict[str, Variant] = {
    "plain": plain,
    "ragbench": partial(ragbench_with, {}),
    "plain + mined": plain_mined,
}


def scored(data: Collection, retriever: Retriever, split: str) -> dict[str, float]:
    questions = choose_questions(data, [split])
    found: dict[str, float] = {}
    methods: dict[str, Literal["dense", "fusion"]] = {"ndcg@10": "dense", "fused ndcg@10": "fusion"}
    for name, method in methods.items():
        _, scores = retrieval_scores(name, data, questions, replace(retriever, method=method))
        found[name] = round(float(scores.loc[scores["metric"] == "ndcg@10", "value"].mean()), 4)
    return found


def measure(data: Collection, variant: Variant, questions: int, seed: int, split: str) -> dict[str, Any]:
    pairs = sampled(labelled_pairs(data), questions, seed)
    with tempfile.TemporaryDirectory() as name:
        wall, cpu = time.perf_counter(), time.process_time()
        folder = variant(data, pairs, seed, Path(name))
        spent = {"seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        scores = scored(data, replace(BASE, model=str(folder)), split)
    asked = len({pair.query_id for pair in pairs})
    return {"questions": asked, "pairs": len(pairs), "seed": seed, **spent, **scores}


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0], options)
    changed = {name: json.loads(value) for name, _, value in (each.partition("=") for each in chosen.set)}
    variants = VARIANTS | {"ragbench": partial(ragbench_with, changed)}
    data = load_collection(str(chosen.folder.resolve()))
    log = Path(chosen.out or tempfile.mkdtemp()).with_suffix(".jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RAGBENCH_CACHE"] = cache  # of its own: nothing that was trained before may be found
        started = time.perf_counter()
        base = {"variant": "zero-shot", "questions": 0, "pairs": 0, "seed": 0, **scored(data, BASE, chosen.split)}
        if not rows:
            rows.append({**base, "seconds": round(time.perf_counter() - started, 1)})
            questions = choose_questions(data, [chosen.split])
            _, bm25 = retrieval_scores("bm25", data, questions, replace(BASE, method="bm25"))
            value = round(float(bm25.loc[bm25["metric"] == "ndcg@10", "value"].mean()), 4)
            rows.append({"variant": "bm25", "questions": 0, "pairs": 0, "seed": 0, "ndcg@10": value, "seconds": 0.0})
            log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        seeds = chosen.seeds[:1] if chosen.quick else chosen.seeds
        asked = 40 if chosen.quick else chosen.questions
        for seed in seeds:
            for variant in chosen.variants:
                wanted = {"variant": variant, "wanted": asked, "seed": seed, "split": chosen.split, "set": chosen.set}
                if any(wanted.items() <= row.items() for row in rows):
                    continue
                row = measure(data, variants[variant], asked, seed, chosen.split) | wanted
                print(row, flush=True)
                rows.append(row)
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    finish(Path(__file__).stem, chosen, rows, results(rows, asked))


def results(rows: list[dict[str, Any]], questions: int) -> list[dict[str, Any]]:
    """Compare ragbench with the better plain recipe, on the rows of this many questions (0: all)."""
    base = next(row for row in rows if row["variant"] == "zero-shot")
    rows = [row for row in rows if row.get("wanted") == questions]

    def mean(variant: str, key: str) -> float:
        return statistics.mean(row[key] for row in rows if row["variant"] == variant)

    if not {"plain", "ragbench"} <= {row["variant"] for row in rows}:
        return []  # a look at one of them, on dev
    plain_ones = [name for name in ("plain", "plain + mined") if any(row["variant"] == name for row in rows)]
    better = max(plain_ones, key=lambda name: mean(name, "ndcg@10"))
    gain, theirs = (mean(name, "ndcg@10") - base["ndcg@10"] for name in ("ragbench", better))
    fused = mean("ragbench", "fused ndcg@10") - base["fused ndcg@10"]
    return [
        result(f"gain in nDCG@10 over that of '{better}' ({theirs:+.4f})", gain / theirs, 1.3, float.__ge__),
        result(
            f"wall time over that of '{better}'",
            mean("ragbench", "seconds") / mean(better, "seconds"),
            1.0,
            float.__le__,
        ),
        result("gain in nDCG@10 after fusion with BM25", fused, 0.0, float.__gt__),
    ]


if __name__ == "__main__":
    main()
