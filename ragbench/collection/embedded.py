"""The default collection: the interpreter's own documentation, with questions written for this project.

The questions name their gold passages and quote them. What the running Python does not have, or words differently
enough that a quote is gone, drops the question: the rest is the same on every version.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from ragbench.collection.pydocs import Passage, read_passages
from ragbench.collection.schema import UNANSWERABLE, Collection, Qrels, Query, corpus_from_rows

NAME = "pydocs"
SPLITS = ("train", "dev", "test", "ood")


@dataclass(frozen=True)
class _Question:
    """A committed question: gold groups of (name, quote), the answer citing each group's first name."""

    id: str
    text: str
    answer: str
    gold: tuple[tuple[tuple[str, str], ...], ...]
    tags: tuple[str, ...]


def embedded_collection() -> Collection:
    """Build the default collection from the running interpreter and the committed questions."""
    collection, _ = _build()
    return collection


def questions_without_gold() -> list[str]:
    """Return the ids of the committed questions that this Python's documentation does not support."""
    _, dropped = _build()
    return dropped


def _build() -> tuple[Collection, list[str]]:
    built = read_passages()
    by_name: dict[str, list[Passage]] = {}
    for passage in built:
        for name in passage.names:
            by_name.setdefault(name, []).append(passage)
    queries: dict[str, Query] = {}
    qrels: dict[str, Qrels] = {}
    dropped: list[str] = []
    for split in SPLITS:
        qrels[split] = {}
        for question in _questions(split):
            groups = [_ids(group, by_name) for group in question.gold]
            if not all(groups):
                dropped.append(question.id)
                continue
            queries[question.id] = _query(question, groups, split)
            qrels[split][question.id] = {passage_id: 1 for group in groups for passage_id in group}
    corpus = corpus_from_rows((p.id, p.title, p.text, p.document) for p in built)
    return Collection(NAME, corpus, queries, qrels), dropped


def _questions(split: str) -> Iterator[_Question]:
    text = files("ragbench.collection").joinpath(f"pydocs_questions/{split}.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        record: dict[str, Any] = json.loads(line)
        gold = tuple(tuple((entry["name"], entry.get("quote", "")) for entry in group) for group in record["gold"])
        yield _Question(record["_id"], record["text"], record["answer"], gold, tuple(record["tags"]))


def _ids(group: tuple[tuple[str, str], ...], by_name: dict[str, list[Passage]]) -> tuple[str, ...]:
    """Return the passages of a gold group; empty if its first entry, which the answer cites, is not there."""
    found: dict[str, None] = {}
    for position, (name, quote) in enumerate(group):
        matching = [p.id for p in by_name.get(name, []) if " ".join(quote.split()) in " ".join(p.text.split())]
        if position == 0 and not matching:
            return ()
        found.update(dict.fromkeys(matching))
    return tuple(found)


def _query(question: _Question, groups: list[tuple[str, ...]], split: str) -> Query:
    answer = question.answer
    for group, ids in zip(question.gold, groups, strict=True):
        # The piece of a long text that holds the quote can differ between versions; the citation names it.
        answer = answer.replace(f"[{group[0][0]}]", f"[{ids[0]}]")
    needs = tuple(groups)
    return Query(
        question.id, question.text, answer, question.tags, needs, split if UNANSWERABLE in question.tags else None
    )
