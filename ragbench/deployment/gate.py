"""The gate before a new version is used: is it clearly worse than the present one on any questions that matter?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ragbench.collection.load import load_collection
from ragbench.collection.schema import Collection
from ragbench.deployment.bundle import read_canaries, read_manifest, system_of
from ragbench.errors import RagbenchError
from ragbench.evaluation.answer_metrics import HOUSE_STYLE
from ragbench.evaluation.comparison import Comparison, compare, paired
from ragbench.evaluation.evaluate import Questions, System, choose_questions, evaluate
from ragbench.retrieval.encoder import Encoder, open_encoder

SPLITS = ("test", "ood")
TOLERATED = {"ndcg@10": 0.02, "answer_f1": 0.02, "refusal": 0.02, "format": 0.05, "citation_precision": 0.05}
SHOWN = 3
JUDGE = "all-MiniLM-L6-v2"
"""The fixed encoder of the evaluation."""
PRESENT, NEW = "present", "new"


@dataclass(frozen=True)
class Gate:
    """How strict the gate is.

    Attributes:
        tolerated: metric → mean loss that is let pass. A larger one is refused if it is clear: if its whole 95 %
            interval lies below zero.
        questions: of the held-out and out-of-domain splits together, drawn at random; 0 for all.
        answer_format: the house style.
        seed: of the drawing and the intervals.
    """

    tolerated: Mapping[str, float] = field(default_factory=lambda: dict(TOLERATED))
    questions: int = 0
    answer_format: str = HOUSE_STYLE
    seed: int = 13


@dataclass(frozen=True)
class Judged:
    """What the gate found.

    Attributes:
        comparisons: of the new version with the present one: all metrics with a tolerance, split by split.
        refused: a sentence for each clear loss: the metric, the split, and the questions that lost most.
    """

    comparisons: tuple[Comparison, ...]
    refused: tuple[str, ...]


def parse_tolerated(texts: Sequence[str]) -> dict[str, float]:
    """Return `TOLERATED` with what ``METRIC=LOSS`` changes of it.

    Raises:
        RagbenchError: a text is not of that form, or the metric is not one of the gate's.
    """
    found = dict(TOLERATED)
    for text in texts:
        name, _, value = text.partition("=")
        try:
            loss = float(value)
        except ValueError:
            loss = -1.0
        if name not in TOLERATED or not 0 <= loss < 1:
            raise RagbenchError(
                f"--tolerate '{text}': give METRIC=LOSS with a loss from 0 to 1 and one of {', '.join(TOLERATED)}."
            )
        found[name] = loss
    return found


def admit(present: Path, new: Path, collection: str, gate: Gate) -> list[str]:
    """Let a bundle pass the gate against the one in use; return the comparisons in words.

    Raises:
        RagbenchError: it is clearly worse; the message names metrics and questions.
    """
    folders = (present, new)
    before, after = (system_of(folder, read_manifest(folder)) for folder in folders)
    found = pass_gate(before, after, present, load_collection(collection), open_encoder(JUDGE), gate)
    if found.refused:
        raise RagbenchError(f"{new} is not put into use, for it is worse than {present}. " + " ".join(found.refused))
    return in_words(found.comparisons)


def pass_gate(
    present: System, new: System, present_folder: Path, collection: Collection, encoder: Encoder, gate: Gate
) -> Judged:
    """Ask both versions the same held-out, out-of-domain and canary questions.

    Args:
        present_folder: of the bundle in use, whose canaries are asked; those that the collection no longer has are not.
        encoder: the fixed encoder of the evaluation.

    Raises:
        RagbenchError: the collection has none of these questions, or a system cannot answer.
    """
    questions = gate_questions(collection, present_folder, gate)
    scores = pd.concat(
        [
            evaluate(
                System(name, system.retriever, system.generator),
                collection,
                questions,
                encoder=encoder,
                answer_format=gate.answer_format,
            ).scores
            for name, system in ((PRESENT, present), (NEW, new))
        ],
        ignore_index=True,
    )
    return judged(scores, {query.id: query.text for asked in questions.values() for query in asked}, gate)


def gate_questions(collection: Collection, folder: Path, gate: Gate) -> Questions:
    """Return the held-out, out-of-domain and canary questions that the gate asks."""
    splits = [split for split in SPLITS if split in collection.qrels]
    questions = choose_questions(collection, splits, gate.questions, gate.seed) if splits else {}
    asked = {query.id for queries in questions.values() for query in queries}
    canaries: Questions = {}
    for record in read_canaries(folder):
        split, name = record["split"], record["query_id"]
        if name in collection.qrels.get(split, {}) and name not in asked:
            canaries.setdefault(split, []).append(collection.queries[name])
    questions = {**questions, **{split: [*questions.get(split, []), *more] for split, more in canaries.items()}}
    if not questions:
        raise RagbenchError(
            f"The collection '{collection.name}' has neither {' nor '.join(SPLITS)} nor the canaries of {folder}: "
            "there is nothing to compare the versions on. Give the collection that they were evaluated on."
        )
    return questions


def judged(scores: pd.DataFrame, texts: Mapping[str, str], gate: Gate) -> Judged:
    """Apply the gate to the scores of the systems `PRESENT` and `NEW`.

    Args:
        texts: of the questions, by id.
    """
    kept = scores[scores["metric"].isin(list(gate.tolerated))]
    if not len(kept):
        return Judged((), ())
    pairs = paired(kept, PRESENT, NEW).assign(change=lambda table: table["after"] - table["before"])
    found = compare(kept, PRESENT, NEW, seed=gate.seed)
    refused = []
    for each in found:
        allowed = gate.tolerated[each.metric]
        if each.difference is None or each.ci is None or each.difference >= -allowed or each.ci[1] >= 0:
            continue
        lost = pairs[(pairs["split"] == each.split) & (pairs["metric"] == each.metric) & (pairs["change"] < 0)]
        worst = lost.sort_values("change", kind="stable").head(SHOWN)
        shown = "; ".join(f"{name} ({texts[name]:.60})" for name in worst["query_id"])
        interval = f"[{each.ci[0]:+.3f}, {each.ci[1]:+.3f}]"
        refused.append(
            f"{each.metric} on {each.split}: {each.difference:+.3f} {interval}, n = {each.n}; a loss of up to "
            f"{allowed:g} is tolerated. {len(lost)} questions lost, most of all {shown}"
        )
    return Judged(tuple(found), tuple(refused))


def in_words(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a line a comparison, for people."""
    return [
        f"{each.split:6} {each.metric:20} "
        + (f"{each.difference:+.3f} [{each.ci[0]:+.3f}, {each.ci[1]:+.3f}], n = {each.n}" if each.ci else "not scored")
        for each in comparisons
    ]
