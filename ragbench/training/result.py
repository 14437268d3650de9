"""What came of tuning a retriever: whether it is kept, and the folder with its card."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ragbench.collection.schema import Collection, passage_texts, split_queries
from ragbench.evaluation.comparison import Comparison
from ragbench.evaluation.evaluate import Outcome, Questions
from ragbench.files import write_text
from ragbench.models import resolve_model
from ragbench.retrieval.encoder import Encoder, encode
from ragbench.training import guards
from ragbench.training.decision import change_in_words, kept_or_not
from ragbench.training.dev import DEV, LABELLED, DevSet
from ragbench.training.guards import Guard
from ragbench.training.retriever import Recipe, Tuned
from ragbench.training.retriever_card import model_card

OOD = "ood"
METRIC = "ndcg@10"
_PASSAGES = 1000  # for the mean cosine: more would change its third digit


def with_dev(collection: Collection, dev: DevSet) -> Collection:
    """Return the collection with a dev set as its dev split: held-out pairs are scored like a labelled split."""
    added = {query.id: query for query in dev.queries if query.id not in collection.queries}
    return replace(collection, queries={**collection.queries, **added}, qrels={**collection.qrels, DEV: dev.qrels})


def questions_to_compare(collection: Collection, dev: DevSet) -> Questions:
    """Return the questions of dev, and of ood where the collection has it: that split shows what was forgotten."""
    questions: Questions = {DEV: [collection.queries[name] for name in dev.questions]}
    if OOD in collection.qrels:
        questions[OOD] = [query for query in split_queries(collection, OOD) if query.answerable]
    return questions


def check(tuned: Tuned, before: Outcome, after: Outcome, collection: Collection, encoder: Encoder) -> list[Guard]:
    """Return all guards: those of the training, and whether retrieval collapsed or fell on dev.

    Args:
        before, after: what the base and the tuned model retrieved on dev, over the whole corpus.
        encoder: the tuned model.
    """
    rows = np.unique(np.linspace(0, len(collection.corpus) - 1, _PASSAGES).astype(int))
    first = [[next(iter(outcome.run[query.id])) for query in outcome.questions[DEV]] for outcome in (before, after)]
    means = [_mean(outcome.scores, DEV) for outcome in (before, after)]
    return [
        *tuned.guards,
        guards.not_collapsed(encode(encoder, passage_texts(collection, rows), "passage"), *first),
        guards.dev_did_not_fall(means[0], means[1]),
    ]


def _mean(scores: pd.DataFrame, split: str) -> float:
    return float(scores.loc[(scores["split"] == split) & (scores["metric"] == METRIC), "value"].mean())


def tried_table(tried: Sequence[Tuned]) -> pd.DataFrame:
    """Return a row a training run, the best first: what it was, dev before and at best, steps, blend, seconds."""
    return pd.DataFrame(
        [
            {
                "learning rate": f"{tuned.learning_rate:g}",
                "epochs": f"{tuned.epochs:g}",
                "dev before": tuned.base_dev,
                "dev at best": tuned.best_dev,
                "best step": f"{tuned.best_step} of {tuned.steps}",
                "tuned share": tuned.blend,
                "seconds": round(tuned.seconds),
            }
            for tuned in tried
        ]
    )


def decide(
    checked: Sequence[Guard], comparisons: Sequence[Comparison], dev: DevSet, tolerance: float
) -> dict[str, Any]:
    """Return {"kept": "tuned" or "base", "reason", "notes"}: the base is kept if any check fails.

    Out-of-domain loss is no reason to discard, as only dev chooses; beyond `tolerance` it is said.
    """
    changes = {c.split: c for c in comparisons if c.metric == METRIC and c.n}
    notes = [change_in_words(change, "nDCG@10") for change in changes.values()]
    if OOD in changes and (changes[OOD].difference or 0.0) < -tolerance:
        notes.append(f"Out of domain it lost more than the {tolerance:g} that is tolerated.")
    if dev.kind != LABELLED:
        notes.append(
            "No labelled question chose: dev is made of pairs held back from training. They tell whether the retriever "
            "learned what it was shown, not how it does on the questions of people."
        )
    return kept_or_not(checked, notes)


def save_retriever(
    folder: Path,
    tuned: Tuned,
    recipe: Recipe,
    decision: Mapping[str, Any],
    metrics: Mapping[str, Any],
    parameters: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Write the retriever that is kept as a plain Sentence-Transformers folder, with a card of what was measured.

    Args:
        metrics: the ``systems`` of a metrics.json, on dev and ood.
        data: the facts of the training data (`ragbench.training.card.facts`).
    """
    kept = tuned.folder if decision["kept"] == "tuned" else resolve_model(recipe.model, recipe.revision)
    shutil.copytree(kept, folder, ignore=shutil.ignore_patterns("README.md", "*.bin", "*.onnx", "*.h5"))
    write_text(folder / "README.md", model_card(tuned, recipe, decision, metrics, parameters, data))
