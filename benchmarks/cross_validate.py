"""Settings of the retriever, compared by cross-validation over the labelled questions of train and dev.

Folds are by document: a fold's retriever is trained on the questions whose gold passages share no document with it, as
03_retriever would (a part of these held back to choose checkpoint and blend by), and judged on the fold over the whole
corpus. Differences are paired by question. The test split is never touched, so defaults may be chosen here. Finished
trainings are kept in the cache folder: what was stopped goes on.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from harness import arguments, finish
from retriever import BASE, ragbench_with

from ragbench.collection.load import load_collection
from ragbench.collection.schema import Collection, Qrels, passages
from ragbench.evaluation.comparison import compare
from ragbench.evaluation.evaluate import retrieval_scores
from ragbench.files import sha256_text
from ragbench.training.pairs import labelled_pairs

HELD = "held"
JUDGED = replace(BASE, dtype="auto")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="pydocs", help="a collection with train and dev")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[13])
    parser.add_argument(
        "--setting", action="append", default=[], help='parameters of 03_retriever, e.g. {"retriever_epochs": [4.0]}'
    )


def folds(data: Collection, count: int) -> Iterator[tuple[Qrels, Qrels]]:
    """Yield for each fold the questions to train on and those held out, with their gold passages."""
    qrels = {
        name: gold for split in ("train", "dev") for name, gold in data.qrels.get(split, {}).items()
        if any(score > 0 for score in gold.values())
    }  # fmt: skip
    document = {name: p.document_id for name, p in passages(data, [each for g in qrels.values() for each in g]).items()}
    order = sorted(set(document.values()), key=lambda name: sha256_text("fold", name))
    fold = {name: place % count for place, name in enumerate(order)}
    for number in range(count):
        held = {name: gold for name, gold in qrels.items() if fold[document[next(iter(gold))]] == number}
        apart = {name: gold for name, gold in qrels.items() if all(fold[document[each]] != number for each in gold)}
        yield apart, held


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0], options)
    settings = {"default": {}, **{text: json.loads(text) for text in chosen.setting}}
    data = load_collection(chosen.folder)
    tables = []
    for number, (apart, held) in enumerate(folds(data, chosen.folds)):
        if chosen.quick and number:
            break
        asked = {HELD: [data.queries[name] for name in held]}
        part = replace(data, qrels={"train": apart, HELD: held})
        tables.append(retrieval_scores("base", part, asked, JUDGED)[1].assign(seed=0, fold=number))
        for name, changed in settings.items():
            for seed in chosen.seeds:
                pairs = labelled_pairs(replace(data, qrels={"train": apart}))
                with tempfile.TemporaryDirectory() as scratch:
                    model = ragbench_with(changed, part, pairs, seed, Path(scratch))
                scored = retrieval_scores(name, part, asked, replace(JUDGED, model=str(model)))[1]
                tables.append(scored.assign(seed=seed, fold=number))
                value = scored.loc[scored["metric"] == "ndcg@10", "value"].mean()
                print(f"fold {number}, seed {seed}, {name}: {value:.4f} of {len(held)} questions", flush=True)
    finish(Path(__file__).stem, chosen, rows(pd.concat(tables, ignore_index=True), list(settings)), [])


def rows(scores: pd.DataFrame, settings: list[str]) -> list[dict[str, Any]]:
    """Return a row a setting: nDCG@10, and its paired difference to the base model and to the default, over all folds.

    A question's value is its mean over the seeds.
    """
    scores = scores[scores["metric"] == "ndcg@10"]
    means = scores.groupby(["system", "split", "metric", "query_id"], sort=False)["value"].mean().reset_index()
    found = []
    for name in ["base", *settings]:
        row: dict[str, Any] = {"variant": name, "ndcg@10": float(means.loc[means["system"] == name, "value"].mean())}
        for other in ("base", "default"):
            if name not in ("base", other):
                [difference] = compare(means, other, name)
                low, high = difference.ci or (float("nan"), float("nan"))
                row[f"against {other}"] = f"{difference.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
                row["questions"] = difference.n
        found.append(row)
    return found


if __name__ == "__main__":
    main()
