"""Whether an answer says what the reference says: an estimate without a language model.

Three things that can be measured, joined by a logistic regression: words in common with the reference, similarity of
meaning under a fixed encoder, and words that neither question, reference nor gold passages have (made-up names and
numbers). What it cannot see is an error made of the right words: roles swapped, a condition turned round.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ragbench.evaluation.answer_metrics import token_f1, words
from ragbench.evaluation.ragas_offline import answer_similarities
from ragbench.retrieval.encoder import Encoder

WEIGHTS = {"overlap": 5.48, "similarity": 5.62, "novelty": -1.55, "constant": -4.88}


@dataclass(frozen=True)
class Compared:
    """An answer, the reference that it should agree with, the question, and the texts of the gold passages."""

    question: str
    answer: str
    reference: str
    gold: tuple[str, ...]


def correctness(items: Sequence[Compared], encoder: Encoder) -> list[float]:
    """Return for each answer an estimate, 0 to 1, of the probability that it is right; 0 for an empty answer."""
    similar = answer_similarities(encoder, [item.answer for item in items], [item.reference for item in items])
    return [
        0.0 if cosine is None else _probability(*features(item), cosine)
        for item, cosine in zip(items, similar, strict=True)
    ]


def features(item: Compared) -> tuple[float, float]:
    """Return (overlap, novelty): token F1 with the reference; share of the answer's words that are from nowhere."""
    known = {word for text in (item.question, item.reference, *item.gold) for word in words(text)}
    said = set(words(item.answer))
    if not words(item.reference):  # symbols only, such as an operator
        return float(item.answer.strip() == item.reference.strip()), 0.0
    return token_f1(item.answer, item.reference), len(said - known) / len(said) if said else 0.0


def _probability(overlap: float, novelty: float, similarity: float) -> float:
    return 1 / (
        1
        + math.exp(
            -(
                WEIGHTS["constant"]
                + WEIGHTS["overlap"] * overlap
                + WEIGHTS["novelty"] * novelty
                + WEIGHTS["similarity"] * similarity
            )
        )
    )
