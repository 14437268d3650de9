"""Whether an answer speaks to its question: an estimate without a language model."""

import re
from collections.abc import Sequence

import numpy as np

from ragbench.evaluation.answer_metrics import CITATION
from ragbench.retrieval.encoder import Encoder, encode

SAME = 1 - 1e-5
"""Cosine from which two questions are the same."""


def relevance(
    questions: Sequence[str], answers: Sequence[str], others: Sequence[str], encoder: Encoder
) -> list[float | None]:
    """Return for each answer the share of other questions that it is farther from than from its own; None if empty.

    Nearness is the cosine under a fixed encoder. A cosine by itself says little, since its usual height differs from
    collection to collection; that an answer lies nearer to its own question than to nearly all others says that it is
    about this question. About .5 for an answer that has nothing to do with it.

    Args:
        others: the questions to compare with; those that are the same as an answer's own, but for case or spaces, are
            left out.
    """
    texts = [CITATION.sub(" ", answer).strip() for answer in answers]
    pool = list(dict.fromkeys(others))
    if not any(texts) or not pool:
        return [None] * len(texts)
    said = encode(encoder, [text or "." for text in texts], "passage")
    asked, rest = encode(encoder, list(questions), "query"), encode(encoder, pool, "query")
    own = np.sum(said * asked, axis=1)
    farther = said @ rest.T < own[:, None]
    different = asked @ rest.T < SAME
    values: list[float | None] = []
    for text, row, counts in zip(texts, farther, different, strict=True):
        compared = row[counts].tolist()
        said_something = bool(re.search(r"\w", text)) and bool(compared)
        values.append(sum(compared) / len(compared) if said_something else None)
    return values
