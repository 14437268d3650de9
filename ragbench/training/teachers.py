"""A teacher's scores for a retriever that learns the order of passages from a better ranker (distillation)."""

from collections.abc import Sequence

import numpy as np

from ragbench.collection.schema import Collection, passage_texts, rows_of
from ragbench.retrieval.encoder import Encoder, encode
from ragbench.retrieval.sparse import bm25_scores
from ragbench.training.cross_encoder import cross_scores
from ragbench.training.pairs import Pair

BM25, FUSION = "bm25", "fusion"


def teacher_scores(
    collection: Collection, pairs: Sequence[Pair], negatives: np.ndarray, teacher: str, encoder: Encoder
) -> np.ndarray | None:
    """Return a teacher's score of each pair's positive and of its negatives: float64 of shape (pairs, 1 + negatives).

    None without a teacher. The passages are scored whole, also those of pairs made from the corpus, whose positive is
    a passage without its question.

    Args:
        negatives: corpus rows, of shape (pairs, negatives).
        teacher: ``bm25`` (scores over the question's highest, so 0 to 1), ``fusion`` (the mean of that and of the base
            retriever's cosine), the name of a cross-encoder (its probability), or empty.

    Raises:
        RagbenchError: the cross-encoder cannot be had.
    """
    if not teacher:
        return None
    positives = rows_of(collection, [pair.passage_id for pair in pairs])
    rows = np.concatenate([positives[:, None], negatives], axis=1)
    if teacher not in (BM25, FUSION):
        texts = passage_texts(collection, rows.ravel()).to_pylist()
        asked = [pair.question for pair in pairs for _ in range(rows.shape[1])]
        score = cross_scores(teacher, encoder.device)
        assert score is not None
        return score(list(zip(asked, texts, strict=True))).reshape(rows.shape)
    every_score = bm25_scores(collection, [pair.question for pair in pairs])
    lexical = np.stack(
        [scores[found] / max(float(scores.max()), 1e-9) for scores, found in zip(every_score, rows, strict=True)]
    )
    if teacher == BM25:
        return lexical.astype(np.float64)
    questions = encode(encoder, [pair.question for pair in pairs], "query")
    texts = encode(encoder, passage_texts(collection, rows.ravel()), "passage").reshape(*rows.shape, -1)
    return (lexical + np.einsum("pd,pcd->pc", questions, texts)) / 2
