"""Hard negatives: passages that a retriever takes for answers and that are none, mined from the whole corpus.

Candidates come from the base retriever and from BM25. A candidate that scores nearly as high as the positive is likely
to be an answer that nobody labelled, and training against it teaches the wrong thing (RocketQA, Qu et al. 2021). So
those above a share of the positive's score are dropped (NV-Retriever, de Souza P. Moreira et al. 2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm import tqdm

from ragbench.collection.schema import Collection, corpus_ids, passage_texts
from ragbench.errors import RagbenchError
from ragbench.files import sha256_text
from ragbench.retrieval.encoder import Encoder, encode
from ragbench.training.candidates import ABSENT, Mining, candidate_rows, check, known_rows, text_groups
from ragbench.training.cross_encoder import CrossScores
from ragbench.training.pairs import Pair

OUTCOMES = (
    "kept",
    "known positive",
    "text of a positive",
    "scores like a positive",
    "cross-encoder: an answer",
    "not needed",
)
"""What becomes of a candidate; the filters stand in the order in which they are asked."""
_KEPT, _KNOWN, _SAME_TEXT, _TOO_NEAR, _CROSS, _NOT_NEEDED = range(6)
_PAIRS = 256  # at a time: their candidates' vectors take some 40 MiB at 384 dimensions
_CROSS_CHECKED = 3  # times as many candidates as are needed go through the cross-encoder, which is slow


@dataclass(frozen=True)
class Candidate:
    """A passage that was looked at for a pair: where it came from, how it and the positive score, what it became."""

    pair: Pair
    passage_id: str
    source: str
    rank: int
    score: float
    positive_score: float
    outcome: str


@dataclass(frozen=True)
class Mined:
    """Hard negatives of some pairs.

    Attributes:
        rows: corpus rows of each pair's negatives, int64 of shape (pairs, per_positive), the highest ranked first;
            -1 where none was left.
        outcomes: how many candidates became what; columns outcome, candidates.
        examples: some candidates of every outcome, for people to read.
    """

    rows: np.ndarray
    outcomes: pd.DataFrame
    examples: list[Candidate]


@dataclass(frozen=True)
class _Batch:
    """Some pairs with their candidates: rows and outcomes of shape (pairs, candidates), -1 for none; their scores."""

    pairs: list[Pair]
    rows: np.ndarray
    scores: np.ndarray
    positive: np.ndarray
    outcome: np.ndarray


def mine(
    collection: Collection,
    pairs: Sequence[Pair],
    encoder: Encoder,
    mining: Mining,
    *,
    cross_scores: CrossScores | None = None,
    examples: int = 3,
) -> Mined:
    """Mine hard negatives for every pair over the whole corpus.

    What takes time is encoding, and that goes through the embedding cache: a killed run goes on where it was. Memory:
    the corpus embeddings and a batch of candidates.

    Args:
        encoder: the base retriever, whose scores also decide what scores like a positive.
        cross_scores: a stronger judge; what it too puts above `mining.share` of the positive's score is dropped.
        examples: how many candidates of each outcome to keep for people to read.

    Raises:
        RagbenchError: a setting of `mining` is unknown or contradictory.
    """
    check(mining)
    chosen = np.full((len(pairs), mining.per_positive), ABSENT, dtype=np.int64)
    counts = np.zeros(len(OUTCOMES), dtype=np.int64)
    shown: list[Candidate] = []
    if pairs and mining.per_positive:
        corpus = encode(encoder, passage_texts(collection), "passage")
        found = candidate_rows(collection, pairs, encoder, corpus, mining)
        groups = text_groups(collection)
        known = known_rows(collection, pairs)
        bar = tqdm(range(0, len(pairs), _PAIRS), desc="mining negatives", unit=f"{_PAIRS} pairs")
        for start in bar:
            part = list(pairs[start : start + _PAIRS])
            batch = _scored(part, found[start : start + _PAIRS], encoder, corpus)
            _filter(batch, known, groups, mining, collection, cross_scores)
            for place in range(len(part)):
                kept = batch.rows[place, batch.outcome[place] == _KEPT]
                chosen[start + place, : len(kept)] = kept
            counts += np.bincount(batch.outcome[batch.outcome >= 0], minlength=len(OUTCOMES))
            shown += _examples(collection, batch, mining, examples, shown)
    table = pd.DataFrame({"outcome": OUTCOMES, "candidates": counts})
    return Mined(chosen, table, shown)


def filled(collection: Collection, pairs: Sequence[Pair], rows: np.ndarray, seed: int) -> np.ndarray:
    """Return `Mined.rows` with passages drawn at random where no hard negative was left: every row needs the same many.

    No pair gets one of its positives, a passage with the same text, or the same passage twice.

    Raises:
        RagbenchError: the corpus has too few passages for that.
    """
    groups, known = text_groups(collection), known_rows(collection, pairs)
    result = rows.copy()
    for place, pair in enumerate(pairs):
        empty = np.flatnonzero(result[place] == ABSENT)
        if len(empty):
            taken = set(groups[list(known[pair.question])]) | set(groups[result[place, result[place] != ABSENT]])
            draw = np.random.default_rng(int(sha256_text(str(seed), pair.question, pair.passage_id)[:16], 16))
            result[place, empty] = _draw_others(groups, taken, len(empty), draw)
    return result


def _draw_others(groups: np.ndarray, taken: set[int], wanted: int, draw: np.random.Generator) -> list[int]:
    drawn: dict[int, int] = {}
    for row in draw.permutation(len(groups)):
        if groups[row] not in taken:
            drawn.setdefault(int(groups[row]), int(row))
        if len(drawn) == wanted:
            return list(drawn.values())
    raise RagbenchError(f"The corpus has too few different passages for {wanted} negatives: lower prep_negatives.")


def _scored(pairs: list[Pair], rows: np.ndarray, encoder: Encoder, corpus: np.ndarray) -> _Batch:
    asked = encode(encoder, [pair.question for pair in pairs], "query")
    answers = encode(encoder, [pair.positive for pair in pairs], "passage")
    positive = np.einsum("pd,pd->p", asked, answers)
    scores = np.einsum("pd,pcd->pc", asked, corpus[rows])
    return _Batch(pairs, rows, scores, positive, np.where(rows == ABSENT, ABSENT, _KEPT))


def _filter(
    batch: _Batch,
    known: dict[str, set[int]],
    groups: np.ndarray,
    mining: Mining,
    collection: Collection,
    cross_scores: CrossScores | None,
) -> None:
    """Set the outcome of every candidate of a batch."""
    too_near = batch.scores > _ceiling(batch.positive, mining.share)[:, None]
    for place, pair in enumerate(batch.pairs):
        rows, outcome = batch.rows[place], batch.outcome[place]
        own = list(known[pair.question])
        there = outcome == _KEPT
        outcome[there & too_near[place]] = _TOO_NEAR
        outcome[there & np.isin(groups[rows], groups[own])] = _SAME_TEXT
        outcome[there & np.isin(rows, own)] = _KNOWN
    left = [_in_turn(batch, place, groups, mining) for place in range(len(batch.pairs))]
    if cross_scores is not None:
        # What it does not look at is not taken either.
        _leave_out(batch, left, _CROSS_CHECKED * mining.per_positive)
        _cross_check(batch, mining, collection, cross_scores)
    _leave_out(batch, left, mining.per_positive)


def _in_turn(batch: _Batch, place: int, groups: np.ndarray, mining: Mining) -> np.ndarray:
    """Return the candidates of a pair that are left, of each text one, in the order in which they are taken."""
    left = np.flatnonzero(batch.outcome[place] == _KEPT)
    if mining.draw == "random":
        # Seeded by the pair itself, so that adding pairs changes no other pair's negatives.
        pair = batch.pairs[place]
        seed = int(sha256_text(str(mining.seed), pair.question, pair.passage_id)[:16], 16)
        left = np.random.default_rng(seed).permutation(left)
    _, first = np.unique(groups[batch.rows[place, left]], return_index=True)
    return left[np.sort(first)]


def _leave_out(batch: _Batch, in_turn: Sequence[np.ndarray], wanted: int) -> None:
    """Set aside all but the first `wanted` candidates that are still left of each pair."""
    for outcome, spots in zip(batch.outcome, in_turn, strict=True):
        taken = spots[outcome[spots] == _KEPT][:wanted]
        outcome[outcome == _KEPT] = _NOT_NEEDED
        outcome[taken] = _KEPT


def _ceiling(positive: np.ndarray, share: float) -> np.ndarray:
    """Return the highest score that is still taken for a negative's; below the positive's even where that is < 0."""
    return positive - (1 - share) * np.abs(positive)


def _cross_check(batch: _Batch, mining: Mining, collection: Collection, cross_scores: CrossScores) -> None:
    """Let the cross-encoder look at the candidates that are left, each beside its pair's positive."""
    checked = [
        (place, spot) for place in range(len(batch.pairs)) for spot in np.flatnonzero(batch.outcome[place] == _KEPT)
    ]
    texts = passage_texts(collection, [int(batch.rows[at]) for at in checked]).to_pylist()
    questions = [batch.pairs[place].question for place, _ in checked]
    if not checked:
        return
    positive = cross_scores([(pair.question, pair.positive) for pair in batch.pairs])
    scores = cross_scores(list(zip(questions, texts, strict=True)))
    ceiling = _ceiling(np.asarray(positive, dtype=float), mining.share)
    for (place, spot), score in zip(checked, scores, strict=True):
        if score > ceiling[place]:
            batch.outcome[place, spot] = _CROSS


def _examples(
    collection: Collection, batch: _Batch, mining: Mining, wanted: int, shown: Sequence[Candidate]
) -> list[Candidate]:
    """Return candidates of those outcomes of which fewer than `wanted` are shown yet, each of another question."""
    ids = corpus_ids(collection)
    found: list[Candidate] = []
    for code, outcome in enumerate(OUTCOMES):
        missing = wanted - sum(candidate.outcome == outcome for candidate in shown)
        of_question = {pair.question: place for place, pair in enumerate(batch.pairs) if code in batch.outcome[place]}
        for place in list(of_question.values())[: max(0, missing)]:
            spot = int(np.flatnonzero(batch.outcome[place] == code)[0])
            turn, source = divmod(spot, len(mining.sources))
            found.append(
                Candidate(
                    batch.pairs[place],
                    ids[int(batch.rows[place, spot])].as_py(),
                    mining.sources[source],
                    mining.first + turn,
                    float(batch.scores[place, spot]),
                    float(batch.positive[place]),
                    outcome,
                )
            )
    return found
