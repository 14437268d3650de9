"""What came of joint training: whether it is kept, which passages moved, and which part made the answers better."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ragbench.collection.schema import Collection, passages
from ragbench.evaluation.comparison import Comparison
from ragbench.evaluation.evaluate import Outcome, Questions, System, evaluate
from ragbench.evaluation.scores import bootstrap_interval
from ragbench.files import write_text
from ragbench.retrieval.encoder import Encoder
from ragbench.retrieval.runs import top
from ragbench.training.decision import change_in_words, kept_or_not
from ragbench.training.end_to_end import Trained
from ragbench.training.generator_result import dev_kept, ood_kept
from ragbench.training.guards import Guard
from ragbench.training.joint_looks import Look

MEASURES = ("ndcg@10", "answer_f1", "citation_precision", "refusal")
_EFFECTS = {"retriever": "what is retrieved now", "generator": "how it is answered now"}


def looks_table(looks: Sequence[Look]) -> pd.DataFrame:
    """Return a row a measure, named for people, and a column a look at dev."""
    names = {
        "loss": "loss of an answer's token", "recall": "gold among the K passages",
        "distinct": "different first passages", "cosine": "cosine between questions",
        "own": "log-likelihood of a token given its own first passage", "shuffled": "the same given another question's",
        "fresh": "of the K, also among those of the index before", "retriever_entropy": "entropy over the K, retriever",
        "generator_entropy": "entropy over the K, generator",
    }  # fmt: skip
    rows = [
        {"on dev": text, **{f"step {look.step}": float(getattr(look, name)) for look in looks}}
        for name, text in names.items()
    ]
    return pd.DataFrame(rows)


def check(trained: Trained, before: Outcome, after: Outcome, tolerance: float, seed: int) -> list[Guard]:
    """Return all guards: of the training, and whether answers on dev or ood fell."""
    return [*trained.guards, *dev_kept(before, after, seed), *ood_kept(before, after, tolerance, seed)]


def decide(trained: Trained, checked: Sequence[Guard], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return {"kept", "reason", "notes"}; an alarm is only noted, as the best state before it is what was left."""
    notes = [change_in_words(c, c.metric) for c in comparisons if c.metric in MEASURES and c.n]
    if trained.stopped:
        notes.append(f"Training was stopped: {trained.stopped}.")
    return kept_or_not(checked, notes, "system that training started from", "jointly trained system")


def crossed(start: System, end: System) -> list[System]:
    """Return the four systems of both retrievers and both generators: old and old, new and old, old and new, new."""
    return [
        replace(start, name="old retriever, old generator"),
        System("new retriever, old generator", end.retriever, start.generator),
        System("old retriever, new generator", start.retriever, end.generator),
        replace(end, name="new retriever, new generator"),
    ]


def effects(
    collection: Collection,
    questions: Questions,
    start: System,
    end: System,
    *,
    encoder: Encoder,
    answer_format: str,
    metric: str = "answer_f1",
    seed: int = 0,
) -> pd.DataFrame:
    """Tell how much of the change in a metric came by retrieval and how much by generation.

    A part's effect on a question is the mean of exchanging it under the old and under the new other part (Shapley
    1953): the two add up to the whole change.

    Returns: columns part, change, low, high, better, worse, n; a row a part and one for both.
    """
    outcomes = [
        evaluate(each, collection, questions, encoder=encoder, answer_format=answer_format)
        for each in crossed(start, end)
    ]
    values = [
        outcome.scores[outcome.scores["metric"] == metric].set_index(["split", "query_id"])["value"]
        for outcome in outcomes
    ]
    table = pd.concat(values, axis=1, keys=range(4)).dropna()
    old, by_retriever, by_generator, new = (table[number].to_numpy(dtype=float) for number in range(4))
    changes = {
        "retriever": ((by_retriever - old) + (new - by_generator)) / 2,
        "generator": ((by_generator - old) + (new - by_retriever)) / 2,
    }
    rows = [(_EFFECTS[part], change) for part, change in changes.items()] + [("both", new - old)]
    return pd.DataFrame([_effect(name, change, seed) for name, change in rows])


def _effect(name: str, change: np.ndarray, seed: int) -> dict[str, Any]:
    low, high = bootstrap_interval(change, seed) or (float("nan"), float("nan"))
    return {
        "part": name,
        "change": float(change.mean()) if len(change) else float("nan"),
        "low": low,
        "high": high,
        "better": int((change > 0).sum()),
        "worse": int((change < 0).sum()),
        "n": len(change),
    }


def moved_passages(
    collection: Collection, before: Outcome, after: Outcome, contexts: int, limit: int = 8
) -> pd.DataFrame:
    """Return the passages that are shown for more questions than before, and those for fewer; the most changed first.

    Columns passage, before, after (questions for which it is among the `contexts` best), of them gold before and after,
    and its first words.
    """
    rows: dict[str, list[int]] = {}
    for split, queries in after.questions.items():
        for query in queries:
            gold = {name for name, score in collection.qrels[split][query.id].items() if score > 0}
            for place, outcome in enumerate((before, after)):
                for name in top(outcome.run, query.id, contexts):
                    counts = rows.setdefault(name, [0, 0, 0, 0])
                    counts[place] += 1
                    counts[place + 2] += name in gold
    changed = sorted((name for name in rows if rows[name][0] != rows[name][1]),
                     key=lambda name: (-abs(rows[name][1] - rows[name][0]), name))[:limit]  # fmt: skip
    known = passages(collection, changed)
    columns = ["passage", "shown before", "shown after", "gold before", "gold after", "text"]
    return pd.DataFrame([[name, *rows[name], _short(known[name].full_text)] for name in changed], columns=columns)


def _short(text: str) -> str:
    return text if len(text) <= 90 else f"{text[:90]} …"


def save_jointly(folder: Path, trained: Trained, decision: Mapping[str, Any]) -> None:
    """Write looks.csv and, if it is kept, what was trained: ``retriever/`` and, if it learned, ``generator/``."""
    write_text(folder / "looks.csv", pd.DataFrame([asdict(look) for look in trained.looks]).to_csv(index=False))
    if decision["kept"] == "base":
        return
    shutil.copytree(trained.retriever, folder / "retriever")
    if trained.generator:
        shutil.copytree(trained.generator, folder / "generator")
