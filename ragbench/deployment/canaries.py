"""Canaries: a few questions whose passages and answers are kept in the bundle, asked again later.

A bundle does not change. Where it finds or answers something else than when it was packed, what it stands on has
changed: a library, the processor, the model behind a served name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from ragbench.collection.schema import Collection
from ragbench.deployment.answering import Deployed, answer_all, search_all
from ragbench.deployment.bundle import read_canaries
from ragbench.deployment.drift import Signal, corrected
from ragbench.evaluation.answer_metrics import token_f1
from ragbench.evaluation.evaluate import System, choose_questions
from ragbench.generation.generate import answer_run
from ragbench.retrieval.retrieve import retrieve

CANARIES = 12
TOLERATED = 0.1
"""Share of canaries that may be found or answered otherwise without a cause: rounding decides between near ties."""
ALIKE = 0.5
"""Token F1 between the answers then and now, below which they count as different."""


@dataclass(frozen=True)
class Canary:
    """A question with what was found and answered when the bundle was packed, and now; None without a generator."""

    question: str
    passages_then: tuple[str, ...]
    passages_now: tuple[str, ...]
    answer_then: str
    answer_now: str | None

    @property
    def found(self) -> bool:
        """Whether the same passages are the first, in any order."""
        return set(self.passages_then) == set(self.passages_now)

    @property
    def answered(self) -> bool | None:
        """Whether the answers are alike; None without a generator."""
        return None if self.answer_now is None else token_f1(self.answer_now, self.answer_then) >= ALIKE


def choose(collection: Collection, system: System, seed: int, limit: int = CANARIES) -> list[dict[str, Any]]:
    """Return questions of dev with what the system finds and answers, for the bundle."""
    split = next((name for name in ("dev", *collection.qrels) if name in collection.qrels), "")
    queries = choose_questions(collection, [split], limit, seed).get(split, []) if split else []
    run = retrieve(collection, queries, system.retriever)
    answers = {answer.query_id: answer.answer for answer in answer_run(collection, queries, run, system.generator)}
    return [
        {
            "query_id": query.id,
            "split": split,
            "question": query.text,
            "passage_ids": list(run[query.id])[: system.generator.contexts],
            "answer": answers.get(query.id, ""),
        }
        for query in queries
    ]


def ask_again(deployed: Deployed) -> list[Canary]:
    """Ask a bundle its canaries, all together.

    Raises:
        RagbenchError: the server of a served generator refuses.
    """
    records, generator = read_canaries(deployed.folder), deployed.system.generator
    questions = [record["question"] for record in records]
    found = search_all(deployed, questions, generator.contexts)
    answers = [] if generator.backend == "none" else [reply.answer for reply in answer_all(deployed, questions)]
    return [
        Canary(
            record["question"],
            tuple(record["passage_ids"]),
            tuple(source.id for source in sources),
            record["answer"],
            answers[place] if answers else None,
        )
        for place, (record, sources) in enumerate(zip(records, found, strict=True))
    ]


def canary_signals(asked: Sequence[Canary]) -> list[Signal]:
    """Return the shares of canaries that find other passages and that are answered otherwise.

    The test is the exact binomial one of more than `TOLERATED` of them, the interval that of Clopper and Pearson.
    """
    kinds = {
        "canary passages": [canary.found for canary in asked],
        "canary answers": [canary.answered for canary in asked if canary.answered is not None],
    }
    found = []
    for name, same in kinds.items():
        if same:
            test = binomtest(len(same) - sum(same), len(same), TOLERATED, alternative="greater")
            share = 1 - sum(same) / len(same)
            interval = binomtest(len(same) - sum(same), len(same)).proportion_ci()
            p = float(test.pvalue)
            found.append(Signal(name, 0.0, share, share, (float(interval.low), float(interval.high)), p, p, False))
    return corrected(found)


def canaries_table(asked: Sequence[Canary]) -> pd.DataFrame:
    """Return a row for each canary that finds or answers something else: what then, and what now."""
    rows = [
        (
            canary.question,
            ", ".join(canary.passages_then),
            "the same" if canary.found else ", ".join(canary.passages_now),
            canary.answer_then,
            "alike" if canary.answered is not False else canary.answer_now,
        )
        for canary in asked
        if not canary.found or canary.answered is False
    ]
    return pd.DataFrame(rows, columns=["question", "passages then", "now", "answer then", "answer now"])
