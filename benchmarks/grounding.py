"""The offline grounding score: agreement with people on held-out answers, beside simple estimators.

`python benchmarks/grounding.py FOLDER --out FILE.json`. FOLDER holds ``claims.jsonl`` and ``answers.jsonl``, whose rows
have ``id, question, contexts, answer, supported, split``, and the answers ``median``, people's rating. Only the test
split is read, which the scores were not fitted to. ``--write`` keeps the agreement in ``grounding.json``, from where
the reports print it.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from fit_grounding import FILES, Example, read
from harness import arguments, finish, result
from scipy.stats import rankdata, spearmanr

from ragbench.evaluation.answer_metrics import words
from ragbench.evaluation.grounding import Measured, grounding, measure
from ragbench.evaluation.grounding_model import PATH, Agreement, fitted
from ragbench.evaluation.sentences import sentences
from ragbench.files import write_json
from ragbench.models import resolve_model
from ragbench.retrieval.encoder import Encoder, encode, open_encoder

ENCODER, MODEL = "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"
NAMES = {"claims": "ExpertQA claims", "answers": "MTRAG answers"}
KINDS = ("light", "full")
SIMPLE = ("token overlap", "best cosine")
TIMED = 40


def main() -> None:
    options = arguments(__doc__.splitlines()[0], _more)
    encoder = open_encoder(ENCODER)
    rows: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for name in FILES:
        examples = read(options.folder / f"{name}.jsonl", test=True)[:: 4 if options.quick else 1]
        scores = scores_of(examples, encoder)
        found, differences = compare(examples, scores, 200 if options.quick else 2000)
        if name == "answers":
            ratings = medians(options.folder / f"{name}.jsonl", examples)
            for row in found:
                row["spearman"] = float(spearmanr(scores[row["score"]], ratings).statistic)
        rows += [{"data": name} | row for row in found]
        results += [
            result(f"{name}: {kind} over {simple}, AUROC, lower bound", low, 0.0, float.__gt__)
            for (kind, simple), low in differences.items()
        ]
    rows += timings(options.folder, encoder, 10 if options.quick else TIMED)
    for row in rows[-len(KINDS) :]:
        bound = {"light": 0.1, "full": 0.9}[row["score"]]
        results.append(result(f"{row['score']}: seconds an answer", row["seconds"], bound, float.__le__))
    if options.write:
        write_agreement(rows)
    finish(Path(__file__).stem, options, rows, results)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="where claims.jsonl and answers.jsonl are")
    parser.add_argument("--write", action="store_true", help="keep the agreement in ragbench/evaluation/grounding.json")


def scores_of(examples: list[Example], encoder: Encoder) -> dict[str, np.ndarray]:
    items = [example.item for example in examples]
    measured = measure(items, encoder, model=MODEL)
    light, full = (grounding(items, encoder, model=model) for model in (None, MODEL))
    return {
        "token overlap": np.array([token_overlap(example) for example in examples]),
        "best cosine": best_cosines(measured, examples, encoder),
        "likelihood gain": np.array([each.weights @ [f["gain"] for f in each.features] for each in measured]),
        "light": np.array([each.score for each in light]),
        "full": np.array([each.score for each in full]),
    }


def token_overlap(example: Example) -> float:
    """Share of the answer's words that the contexts have."""
    shown = set(words(" ".join(example.item.contexts)))
    said = words(example.item.answer)
    return sum(word in shown for word in said) / max(1, len(said))


def best_cosines(measured: list[Measured], examples: list[Example], encoder: Encoder) -> np.ndarray:
    """Mean over the answer's sentences of the best cosine similarity to a sentence of the contexts."""
    shown = [[text for context in each.item.contexts for text in sentences(context)] for each in examples]
    texts = list(dict.fromkeys([t for each in measured for t in each.sentences] + [t for each in shown for t in each]))
    vectors = dict(zip(texts, encode(encoder, texts, "passage"), strict=True))
    return np.array(
        [
            np.mean([max(float(vectors[said] @ vectors[text]) for text in context) for said in each.sentences])
            for each, context in zip(measured, shown, strict=True)
        ]
    )


def compare(
    examples: list[Example], scores: dict[str, np.ndarray], resamples: int
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], float]]:
    """Return a row a score, and the lower ends of the 95 % intervals of the differences to the simple ones.

    Whole questions are drawn, the same for all scores: answers to one question are alike.
    """
    labels = np.array([example.supported for example in examples])
    _, groups = np.unique([example.item.question for example in examples], return_inverse=True)
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    rng = np.random.default_rng(13)
    thresholds = {kind: fitted(kind).threshold for kind in KINDS}
    aurocs: dict[str, list[float]] = {name: [] for name in scores}
    accuracies: dict[str, list[float]] = {kind: [] for kind in KINDS}
    while len(aurocs["full"]) < resamples:
        drawn = np.concatenate([members[group] for group in rng.integers(0, len(members), len(members))])
        if labels[drawn].all() or not labels[drawn].any():
            continue
        for name, values in scores.items():
            aurocs[name].append(auroc(labels[drawn], values[drawn]))
        for kind, threshold in thresholds.items():
            accuracies[kind].append(balanced_accuracy(labels[drawn], scores[kind][drawn] >= threshold))
    rows: list[dict[str, Any]] = []
    for name, values in scores.items():
        row = {"score": name, "n": len(labels), "supported": int(labels.sum()), "auroc": auroc(labels, values)}
        row["auroc_ci"] = interval(aurocs[name])
        if name in thresholds:
            row["balanced_accuracy"] = balanced_accuracy(labels, values >= thresholds[name])
            row["balanced_accuracy_ci"] = interval(accuracies[name])
            for simple in SIMPLE:
                row[f"over {simple}"] = auroc(labels, values) - auroc(labels, scores[simple])
                row[f"over {simple}_ci"] = interval(np.subtract(aurocs[name], aurocs[simple]))
        rows.append(row)
    lows = {(row["score"], s): row[f"over {s}_ci"][0] for row in rows if row["score"] in KINDS for s in SIMPLE}
    return rows, lows


def auroc(labels: np.ndarray, values: np.ndarray) -> float:
    ranks = rankdata(values)
    positive, negative = int(labels.sum()), int((~labels).sum())
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def balanced_accuracy(labels: np.ndarray, said: np.ndarray) -> float:
    return float((said[labels].mean() + (~said[~labels]).mean()) / 2)


def interval(values: list[float] | np.ndarray) -> list[float]:
    return [round(float(end), 4) for end in np.quantile(values, [0.025, 0.975])]


def medians(path: Path, examples: list[Example]) -> list[float]:
    rated = {row["id"]: row["median"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    return [rated[example.id] for example in examples]


def timings(folder: Path, encoder: Encoder, count: int) -> list[dict[str, Any]]:
    """Time both scores on answers of both files in turn, with empty caches; the models are loaded beforehand."""
    both = [read(folder / f"{name}.jsonl", test=False) for name in FILES]
    items = [example.item for pair in zip(*both, strict=False) for example in pair]
    model = str(resolve_model(MODEL))
    grounding(items[-2:], encoder, model=model)
    rows = []
    cache_before = os.environ.get("RAGBENCH_CACHE")
    for kind, name in zip(KINDS, (None, model), strict=True):
        with tempfile.TemporaryDirectory() as empty:
            os.environ["RAGBENCH_CACHE"] = empty
            started = time.perf_counter()
            grounding(items[:count], encoder, model=name, dtype="float32")
            seconds = (time.perf_counter() - started) / count
        rows.append({"data": "timing", "score": kind, "n": count, "seconds": seconds})
    if cache_before is None:
        del os.environ["RAGBENCH_CACHE"]
    else:
        os.environ["RAGBENCH_CACHE"] = cache_before
    return rows


def write_agreement(rows: list[dict[str, Any]]) -> None:
    record = json.loads(PATH.read_text(encoding="utf-8"))
    for kind in KINDS:
        record[kind]["agreement"] = [
            asdict(
                Agreement(
                    NAMES[row["data"]],
                    round(row["auroc"], 3),
                    round(row["balanced_accuracy"], 3),
                    row["n"],
                    row["supported"],
                )
            )
            for row in rows
            if row["score"] == kind and row["data"] in NAMES
        ]
    write_json(PATH, record)


if __name__ == "__main__":
    main()
