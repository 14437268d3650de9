"""Settings of the retriever, compared by cross-validation over the labelled questions of train and dev.

Folds are by document: a fold's retriever is trained on the questions whose gold passages share no document with it, as
03_retriever would (a part of these held back to choose checkpoint and blend by), and judged on the fold over the whole
corpus. Differences are paired by question. The test split is never touched, so defaults may be chosen here. Finished
trainings are kept in the cache folder: what was stopped goes on.

`--foreign FOLDER` also judges every trained retriever on dev of another collection: what was forgotten.
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
from ragbench.collection.schema import Collection, Qrels, Query, passages
from ragbench.evaluation.comparison import compare
from ragbench.evaluation.evaluate import choose_questions, retrieval_scores
from ragbench.files import sha256_text
from ragbench.retrieval.retrieve import Retriever
from ragbench.training.pairs import labelled_pairs

HELD = "held"
JUDGED = replace(BASE, dtype="auto")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="pydocs", help="a collection with train and dev")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[13])
    parser.add_argument("--foreign", type=Path, nargs="+", default=[], help="other collections, with dev")
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
    others = [load_collection(str(folder.resolve())) for folder in chosen.foreign]
    tables = []
    for number, (apart, held) in enumerate(folds(data, chosen.folds)):
        if chosen.quick and number:
            break
        asked = {HELD: [data.queries[name] for name in held]}
        part = replace(data, qrels={"train": apart, HELD: held})
        tables.append(judged("base", part, asked, others, JUDGED).assign(seed=0, fold=number))
        for name, changed in settings.items():
            for seed in chosen.seeds:
                pairs = labelled_pairs(replace(data, qrels={"train": apart}))
                with tempfile.TemporaryDirectory() as scratch:
                    model = ragbench_with(changed, part, pairs, seed, Path(scratch))
                scored = judged(name, part, asked, others, replace(JUDGED, model=str(model)))
                tables.append(scored.assign(seed=seed, fold=number))
                means = scored.groupby("split", sort=False)["value"].mean()
                print(f"fold {number}, seed {seed}, {name}: {means.round(4).to_dict()}", flush=True)
    finish(Path(__file__).stem, chosen, rows(pd.concat(tables, ignore_index=True), list(settings)), [])


def judged(
    name: str, data: Collection, asked: dict[str, list[Query]], others: list[Collection], retriever: Retriever
) -> pd.DataFrame:
    """Return nDCG@10 on the fold, and on dev of the other collections, each under its collection's name."""
    tables = [retrieval_scores(name, data, asked, retriever)[1]]
    for other in others:
        table = retrieval_scores(name, other, choose_questions(other, ["dev"]), retriever)[1]
        tables.append(table.assign(split=other.name))
    scores = pd.concat(tables, ignore_index=True)
    return scores[scores["metric"] == "ndcg@10"]


def rows(scores: pd.DataFrame, settings: list[str]) -> list[dict[str, Any]]:
    """Return a row a setting and split: nDCG@10 and its paired difference to the base model and to the default.

    A question's value is its mean over the seeds, and on a foreign collection over the folds too.
    """
    means = scores.groupby(["system", "split", "metric", "query_id"], sort=False)["value"].mean().reset_index()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for key, part in means.groupby(["system", "split"], sort=False):
        name, split = map(str, key)
        found[name, split] = {"variant": name, "split": split, "ndcg@10": float(part["value"].mean())}
    for other, system in [("base", name) for name in settings] + [("default", name) for name in settings[1:]]:
        for difference in compare(means, other, system):
            low, high = difference.ci or (float("nan"), float("nan"))
            row = found[system, difference.split]
            row[f"against {other}"] = f"{difference.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
            row["questions"] = difference.n
    return list(found.values())


if __name__ == "__main__":
    main()
