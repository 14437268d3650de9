"""What systems are made of, what they cost, and what an evaluation leaves of them on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ragbench.evaluation.evaluate import Outcome, System
from ragbench.evaluation.scores import write_scores
from ragbench.generation.answers import write_answers
from ragbench.retrieval.runs import write_run


def systems_table(systems: Sequence[System]) -> pd.DataFrame:
    """Return one row a system: what it retrieves and answers with."""
    return pd.DataFrame(
        {
            "system": system.name,
            "retrieval": system.retriever.method,
            "retriever": system.retriever.model,
            "passages kept": system.retriever.depth,
            "generator": "none" if system.generator.backend == "none" else system.generator.model,
            "passages shown": system.generator.contexts,
        }
        for system in systems
    )


def over_splits(
    scores: pd.DataFrame, systems: Sequence[str], metrics: Sequence[str] = ("ndcg@10", "answer_f1", "format", "refusal")
) -> pd.DataFrame:
    """Return a row a metric and system, a column a split: the mean over the scored questions, with their n."""
    rows = []
    for metric in metrics:
        for system in systems:
            chosen = scores[(scores["metric"] == metric) & (scores["system"] == system)].dropna(subset=["value"])
            means = {
                split: f"{values.mean():.3f} (n = {len(values)})"
                for split, values in chosen.groupby("split", sort=False)["value"]
            }
            rows += [{"metric": metric, "system": system, **means}] if means else []
    return pd.DataFrame(rows)


def cost_table(outcomes: Sequence[Outcome], training: Mapping[str, float]) -> pd.DataFrame:
    """Return one row a system: seconds of training (`training`), and means over its answers.

    Columns system, training seconds, tokens read, tokens written, seconds an answer; the last as they were measured
    when the answer was made, its share of the batch that it was made in. Missing where nothing was answered.
    """
    rows = []
    for outcome in outcomes:
        given = [answer for answer in outcome.answers.values() if answer.finish_reason != "error"]
        means = {
            name: sum(float(getattr(answer, field)) for answer in given) / len(given) if given else float("nan")
            for name, field in _COSTS.items()
        }
        rows.append({"system": outcome.system, "training seconds": training[outcome.system], **means})
    return pd.DataFrame(rows)


_COSTS = {"tokens read": "prompt_tokens", "tokens written": "completion_tokens", "seconds an answer": "seconds"}


def write_outcomes(folder: Path, outcomes: Sequence[Outcome], scores: pd.DataFrame) -> None:
    """Write SYSTEM.trec and, of those that answered, SYSTEM.answers.jsonl, and scores.parquet."""
    for outcome in outcomes:
        write_run(outcome.run, folder / f"{outcome.system}.trec", outcome.system)
        if outcome.answers:
            write_answers(outcome.answers.values(), folder / f"{outcome.system}.answers.jsonl")
    write_scores(scores, folder / "scores.parquet")
