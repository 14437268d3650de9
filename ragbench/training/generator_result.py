"""What came of tuning a generator: whether it is kept, and the folder with its card."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset

from ragbench.collection.schema import Collection
from ragbench.devices import choose_device
from ragbench.evaluation.answer_metrics import refuses, token_f1, words
from ragbench.evaluation.comparison import Comparison, paired
from ragbench.evaluation.evaluate import Outcome, Questions, choose_questions
from ragbench.evaluation.scores import bootstrap_interval
from ragbench.files import write_text
from ragbench.generation.generate import Generator, complete
from ragbench.generation.local import load_model, load_tokenizer
from ragbench.generation.prompts import CLOSED_BOOK
from ragbench.models import model_hash
from ragbench.training import guards
from ragbench.training.answering import CRITERION, CRITERION_IN_WORDS
from ragbench.training.decision import change_in_words, kept_or_not
from ragbench.training.generator import Tuned
from ragbench.training.guards import Guard

DEV, OOD = "dev", "ood"
MEASURES = ("answer_f1", "citation_precision", "format", "refusal")
RECITED = 0.1
"""Share of dev's answers that may be word for word another question's answer in train."""


def examples_of(rows: Dataset, split: str, limit: int = 0) -> Dataset:
    """Return the examples of one split, at most `limit` of them if that is above 0, evenly spaced."""
    places = [place for place, name in enumerate(rows["split"]) if name == split]
    if 0 < limit < len(places):
        places = [places[number * len(places) // limit] for number in range(limit)]
    return rows.select(places)


def contexts_table(examples: Dataset) -> pd.DataFrame:
    """Return how the contexts of the examples are made up, a row a kind.

    Columns kind, examples, share, passages and distractors (means), and the mean position of the first gold passage.
    """
    rows = pd.DataFrame(
        {
            "kind": examples["kind"],
            "passages": [len(ids) for ids in examples["context_ids"]],
            "distractors": [
                len(set(ids) - set(gold))
                for ids, gold in zip(examples["context_ids"], examples["gold_ids"], strict=True)
            ],
            "gold stands at": [
                min((ids.index(name) + 1 for name in gold), default=None)
                for ids, gold in zip(examples["context_ids"], examples["gold_ids"], strict=True)
            ],
        }
    )
    grouped = rows.groupby("kind", sort=False)
    table = grouped.mean(numeric_only=True).astype(float)
    table.insert(0, "examples", grouped.size())
    table.insert(1, "share", table["examples"] / len(rows))
    return table.reset_index()


def questions_to_compare(collection: Collection, limit: int = 0, seed: int = 0) -> Questions:
    """Return the questions of dev and, where the collection has it, of ood: that split shows what was forgotten.

    With a `limit` above 0, that many of them, see `choose_questions`.
    """
    return choose_questions(collection, [split for split in (DEV, OOD) if split in collection.qrels], limit, seed)


def closed_book(
    questions: Questions, collection: Collection, generators: Mapping[str, Generator]
) -> dict[str, float | None]:
    """Return each generator's mean token F1 on dev's answerable questions without any passage: what it still knows."""
    asked = [query for query in questions.get(DEV, []) if query.answer and query.answerable]
    conversations = [
        [{"role": "system", "content": CLOSED_BOOK}, {"role": "user", "content": query.text}] for query in asked
    ]
    found: dict[str, float | None] = {}
    for name, generator in generators.items():
        replies = complete(conversations, generator)
        values = [token_f1(reply.text, query.answer or "") for reply, query in zip(replies, asked, strict=True)]
        found[name] = sum(values) / len(values) if values else None
    return found


def check(tuned: Tuned, before: Outcome, after: Outcome, examples: Dataset, tolerance: float, seed: int) -> list[Guard]:
    """Return all guards: those of the training, whether dev fell, whether it recites, whether ood was forgotten.

    Args:
        before, after: how the base and the tuned generator answered dev and ood.
        examples: what was trained on.
        tolerance: loss of answer F1 on ood that is taken into account.
    """
    return [
        *tuned.guards,
        guards.dev_did_not_fall(tuned.before[CRITERION], tuned.best[CRITERION], CRITERION_IN_WORDS),
        _does_not_recite(after, examples),
        *ood_kept(before, after, tolerance, seed),
    ]


def _does_not_recite(after: Outcome, examples: Dataset) -> Guard:
    learned: dict[tuple[str, ...], set[str]] = {}
    for example in examples:
        learned.setdefault(tuple(words(example["completion"][-1]["content"])), set()).add(example["query_id"])
    dev = [query for query in after.questions.get(DEV, []) if query.id in after.answers]
    given = {query: tuple(words(after.answers[query.id].answer)) for query in dev}
    given = {query: answer for query, answer in given.items() if not refuses(after.answers[query.id].answer)}
    recited = sum(
        bool(learned.get(answer, set()) - {query.id}) and answer != tuple(words(query.answer or ""))
        for query, answer in given.items()
    )
    return Guard(
        "does not recite",
        recited <= RECITED * len(given),
        f"{recited} of {len(given)} answers on dev are those of train questions, word for word",
    )


def ood_kept(before: Outcome, after: Outcome, tolerance: float, seed: int) -> list[Guard]:
    """Check that answer F1 on ood did not clearly fall by more than is tolerated; nothing without ood."""
    return _kept_on(OOD, "ood was not forgotten", before, after, tolerance, seed)


def dev_kept(before: Outcome, after: Outcome, seed: int) -> list[Guard]:
    """Check that answer F1 on dev did not clearly fall."""
    return _kept_on(DEV, "dev's answers did not fall", before, after, 0.0, seed)


def _kept_on(split: str, name: str, before: Outcome, after: Outcome, tolerance: float, seed: int) -> list[Guard]:
    pairs = paired(pd.concat([before.scores, after.scores]), before.system, after.system)
    pairs = pairs[(pairs["split"] == split) & (pairs["metric"] == "answer_f1")].dropna()
    if not len(pairs):
        return []
    change = (pairs["after"] - pairs["before"]).to_numpy(dtype=float)
    interval = bootstrap_interval(change, seed)
    shown = f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
    lost = interval is not None and interval[1] < -tolerance
    return [Guard(name, not lost, f"answer F1 on {split} {change.mean():+.3f}{shown}, n = {len(change)}")]


def decide(
    checked: Sequence[Guard], comparisons: Sequence[Comparison], known: Mapping[str, float | None]
) -> dict[str, Any]:
    """Return {"kept": "tuned" or "base", "reason", "notes"}: the base is kept if any check fails."""
    notes = [change_in_words(c, c.metric) for c in comparisons if c.metric in MEASURES and c.n]
    if all(value is not None for value in known.values()):
        each = ", ".join(f"{name} {value:.3f}" for name, value in known.items())
        notes.append(f"Without any passage, answer F1 on dev: {each}.")
    return kept_or_not(checked, notes)


def tried_table(tried: Sequence[Tuned]) -> pd.DataFrame:
    """Return a row a training run, the best first: what it was, dev before and at best, steps, seconds."""
    return pd.DataFrame(
        [
            {
                "learning rate": f"{tuned.learning_rate:g}",
                "epochs": f"{tuned.epochs:g}",
                **{f"dev {name} before": tuned.before.get(name) for name in (CRITERION,)},
                **{f"dev {name}": value for name, value in tuned.best.items()},
                "best step": f"{tuned.best_step} of {tuned.steps}",
                "seconds": round(tuned.seconds),
            }
            for tuned in tried
        ]
    )


def save_generator(
    folder: Path,
    tuned: Tuned,
    decision: Mapping[str, Any],
    card: str,
    merge: bool,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the tuned generator as PEFT or Transformers left it, with a card; on request also the merged model.

    Where the base is kept there is nothing to write but the card, which says why.

    Args:
        folder: gets ``model/``, and with `merge` ``merged/``, a whole model that needs no PEFT.
    """
    if decision["kept"] == "base":
        write_text(folder / "README.md", card)
        return
    shutil.copytree(tuned.folder, folder / "model")
    write_text(folder / "model" / "README.md", card)
    if merge:
        version = model_hash(tuned.folder)
        network = load_model(tuned.folder, version, choose_device("cpu"), dtype)
        network.save_pretrained(folder / "merged")
        load_tokenizer(tuned.folder, version).save_pretrained(folder / "merged")
        write_text(folder / "merged" / "README.md", card)
