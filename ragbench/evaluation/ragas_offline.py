"""RAGAS metrics that need no LLM (Es et al. 2023, https://github.com/explodinggradients/ragas).

``context_precision`` and ``context_recall`` compare passage ids; ``answer_similarity`` is the cosine of answer and
reference under a fixed encoder, never the tuned one.
"""

import asyncio
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ragbench.evaluation.answer_metrics import CITATION
from ragbench.retrieval.encoder import Encoder, encode

# RAGAS reports usage to its makers by default, and reads this when it is imported.
os.environ["RAGAS_DO_NOT_TRACK"] = "true"

from ragas import SingleTurnSample
from ragas.embeddings.base import BaseRagasEmbedding
from ragas.metrics import IDBasedContextPrecision, IDBasedContextRecall
from ragas.metrics.collections import SemanticSimilarity


def context_scores(context_ids: Sequence[str], groups: Sequence[frozenset[str]]) -> tuple[float | None, float | None]:
    """Return (context precision, context recall) of one question; None for both if it needs no passage.

    Precision is over passages. Recall is over groups, which are RAGAS's reference ids here: a group is found when any
    of its passages is shown.
    """
    if not groups:
        return None, None
    if not context_ids:
        return 0.0, 0.0
    gold = set().union(*groups)
    hit = [number for number, group in enumerate(groups) if not group.isdisjoint(context_ids)]
    precision = IDBasedContextPrecision().single_turn_score(
        SingleTurnSample(retrieved_context_ids=list(context_ids), reference_context_ids=sorted(gold))
    )
    recall = IDBasedContextRecall().single_turn_score(
        SingleTurnSample(retrieved_context_ids=hit, reference_context_ids=list(range(len(groups))))
    )
    return float(precision), float(recall)


def answer_similarities(encoder: Encoder, answers: Sequence[str], references: Sequence[str]) -> list[float | None]:
    """Return the semantic similarity of each answer to its reference, citations left out; None for an empty answer."""
    ours = [_without_citations(text) for text in answers]
    theirs = [_without_citations(text) for text in references]
    texts = list(dict.fromkeys(text for text in [*ours, *theirs] if text))
    if not texts:
        return [None] * len(ours)
    metric = SemanticSimilarity(embeddings=_KnownEmbeddings(texts, encode(encoder, texts, "passage")))
    scored = [position for position, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a and b]
    inputs = [{"reference": theirs[position], "response": ours[position]} for position in scored]
    results = asyncio.run(metric.abatch_score(inputs)) if inputs else []
    values: list[float | None] = [None] * len(ours)
    for position, result in zip(scored, results, strict=True):
        values[position] = float(result.value)
    return values


def _without_citations(text: str) -> str:
    return re.sub(r"\s+", " ", CITATION.sub(" ", text)).strip()


class _KnownEmbeddings(BaseRagasEmbedding):
    """Hands RAGAS the embeddings that were computed beforehand, in batches and through the cache."""

    def __init__(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        super().__init__()
        self._rows = {text: row for row, text in enumerate(texts)}
        self._vectors = vectors

    def embed_text(self, text: str, **_: Any) -> list[float]:
        return self._vectors[self._rows[text]].tolist()

    async def aembed_text(self, text: str, **_: Any) -> list[float]:
        return self.embed_text(text)
