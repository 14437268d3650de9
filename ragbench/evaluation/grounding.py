"""Offline grounding: is an answer supported by the passages it was given? An estimate without an LLM judge.

Each sentence is held against the passages by wording (`grounding_features`), by meaning (cosine similarity under a
fixed encoder) and by how much likelier a small language model finds it when it reads the passages (`likelihood`). A
logistic regression, fitted to human labels and kept in ``grounding.json``, turns this into a probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ragbench.evaluation.answer_metrics import CITATION
from ragbench.evaluation.grounding_features import content_stems, passages, wording
from ragbench.evaluation.grounding_model import Model, fitted, logits, probabilities
from ragbench.evaluation.likelihood import Continuation, log_probs
from ragbench.evaluation.sentences import sentences
from ragbench.retrieval.encoder import Encoder, encode

WINDOW = 3
"""Sentences of a passage that may support one sentence together."""
BASE_CHARACTERS, CHARACTERS_A_SENTENCE, MAX_CHARACTERS = 600, 200, 2400
"""How much of the passages the language model reads: a base, and more for an answer of several sentences."""
CLEAR_GAIN = 0.1
"""Natural-log probability by which a token must gain to count as likelier."""

Features = dict[str, float]


@dataclass(frozen=True)
class AnswerWithContexts:
    """An answer, the question it is for, and the texts of the passages that should support it."""

    question: str
    answer: str
    contexts: tuple[str, ...]


@dataclass(frozen=True)
class Grounding:
    """How far an answer is supported.

    Attributes:
        score: estimated probability that the passages support the answer; None if it says nothing but citations.
        sentences: each sentence of the answer, citations left out, with its own probability.
    """

    score: float | None
    sentences: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Measured:
    """An answer's sentences, the features of each (none without contexts), and its share in the answer (in all 1)."""

    sentences: tuple[str, ...]
    features: list[Features]
    weights: np.ndarray


@dataclass(frozen=True)
class _Parsed:
    """The question, the answer's sentences, and each passage's."""

    question: str
    sentences: tuple[str, ...]
    passages: tuple[tuple[str, ...], ...]

    def topics(self) -> tuple[str, ...]:
        """Return each sentence after its question, which tells what a sentence like "It does" is about."""
        return tuple(f"{self.question} {sentence}" for sentence in self.sentences)


def grounding(
    items: Sequence[AnswerWithContexts],
    encoder: Encoder,
    *,
    model: str | None = "SmolLM2-135M-Instruct",
    revision: str = "",
    device: str = "auto",
    dtype: str = "auto",
    keep: bool = True,
) -> list[Grounding]:
    """Estimate for each answer, and for each of its sentences, the probability that the contexts support it.

    With ``model=None`` the likelihoods are left out: several times as fast, with coefficients of its own. What was
    computed is cached. An answer without contexts is not supported. `grounding_model.fitted` tells how well either
    score agrees with people, and from which threshold on it says "supported".

    Args:
        keep: whether the embeddings go into the cache; those of what users are told should not.

    Raises:
        RagbenchError: the model or the device is not to be had.
    """
    fit = fitted("light" if model is None else "full")
    measured = measure(items, encoder, model=model, revision=revision, device=device, dtype=dtype, keep=keep)
    return [_grounding(fit, each) for each in measured]


def measure(
    items: Sequence[AnswerWithContexts],
    encoder: Encoder,
    *,
    model: str | None,
    revision: str = "",
    device: str = "auto",
    dtype: str = "auto",
    keep: bool = True,
) -> list[Measured]:
    """Return what the score is computed from; the features' names are those in ``grounding.json``.

    Raises:
        RagbenchError: the model or the device is not to be had.
    """
    parsed = [_parse(item) for item in items]
    vectors = _vectors(parsed, encoder, keep)
    measured = [Measured(each.sentences, _light_features(each, vectors), _weights(each.sentences)) for each in parsed]
    if model is None:
        return measured
    able = [(each, found) for each, found in zip(parsed, measured, strict=True) if each.sentences and each.passages]
    prompts = [_continuation(each, context) for each, _ in able for context in (_nearest(each, vectors), "")]
    values = log_probs(prompts, model=model, revision=revision, device=device, dtype=dtype)
    for (_, found), informed, blind in zip(able, values[::2], values[1::2], strict=True):
        for features, more in zip(found.features, _likelihood_features(informed, blind), strict=True):
            features |= more
    return measured


def _grounding(fit: Model, measured: Measured) -> Grounding:
    if not measured.sentences:
        return Grounding(None, ())
    if not measured.features:
        return Grounding(0.0, tuple((sentence, 0.0) for sentence in measured.sentences))
    own = logits(fit, measured.features)
    whole = float(probabilities(measured.weights @ own))
    return Grounding(whole, tuple(zip(measured.sentences, probabilities(own).tolist(), strict=True)))


def _weights(sentences: Sequence[str]) -> np.ndarray:
    """Return each sentence's share of the content words: "Yes." and headings say little that needs support."""
    counts = np.array([len(content_stems(sentence)) for sentence in sentences], dtype=float)
    return counts / counts.sum() if counts.sum() else np.full(len(counts), 1 / max(1, len(counts)))


def _likelihood_features(informed: Sequence[np.ndarray], blind: Sequence[np.ndarray]) -> list[Features]:
    """Return what reading the passages changes in the tokens' log-probabilities of each sentence.

    ``gain`` is the mean change, for comparison only: it hangs on a few rare tokens. The score uses ``likelier``, the
    share of tokens that gain clearly. A sentence beyond what the model read has no tokens: the whole answer stands in.
    """
    gains = [own - without for own, without in zip(informed, blind, strict=True)]
    whole = np.concatenate(gains)
    chosen = [gain if len(gain) else whole for gain in gains]
    return [{"gain": float(gain.mean()), "likelier": float((gain > CLEAR_GAIN).mean())} for gain in chosen]


def _parse(item: AnswerWithContexts) -> _Parsed:
    answer = CITATION.sub(" ", item.answer)
    spoken = tuple(sentence for sentence in sentences(answer) if any(map(str.isalnum, sentence)))
    shown = tuple(tuple(sentences(context)) for context in item.contexts if context.strip())
    return _Parsed(item.question, spoken, shown)


def _vectors(parsed: Sequence[_Parsed], encoder: Encoder, keep: bool) -> dict[str, np.ndarray]:
    """Return the embedding of every distinct sentence and topic."""
    texts = dict.fromkeys(
        text
        for each in parsed
        if each.sentences and each.passages
        for part in (each.sentences, each.topics(), *each.passages)
        for text in part
    )
    return dict(zip(texts, encode(encoder, list(texts), "passage", keep=keep), strict=True)) if texts else {}


def _light_features(item: _Parsed, vectors: dict[str, np.ndarray]) -> list[Features]:
    if not item.sentences or not item.passages:
        return []
    sources = passages([sentence for passage in item.passages for sentence in passage])
    windows = np.concatenate([_windows(np.stack([vectors[text] for text in passage])) for passage in item.passages])
    whole = np.stack([_mean_vector(passage, vectors) for passage in item.passages])
    return [
        wording(sentence, sources)
        | {
            "similarity": float((windows @ vectors[sentence]).max()),
            "topic": float((whole @ vectors[topic]).max()),
        }
        for sentence, topic in zip(item.sentences, item.topics(), strict=True)
    ]


def _mean_vector(passage: Sequence[str], vectors: dict[str, np.ndarray]) -> np.ndarray:
    """Return a unit vector for a passage of any length: its sentences' embeddings, each counting by its length."""
    total = np.sum([len(text) * vectors[text] for text in passage], axis=0)
    return total / np.linalg.norm(total)


def _windows(vectors: np.ndarray) -> np.ndarray:
    """Return unit vectors of every one to `WINDOW` neighbouring sentences: their embeddings' sums stand for them."""
    sums = np.concatenate([[np.zeros(vectors.shape[1])], vectors.cumsum(axis=0)])
    spans = [sums[size:] - sums[:-size] for size in range(1, min(WINDOW, len(vectors)) + 1)]
    stacked = np.concatenate(spans)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


def _nearest(item: _Parsed, vectors: dict[str, np.ndarray]) -> str:
    """Return those sentences of the passages that are nearest to any of the answer's, in the passages' order."""
    shown = [(number, text) for number, passage in enumerate(item.passages) for text in passage]
    answer = np.stack([vectors[text] for text in item.sentences])
    order = np.argsort(-(np.stack([vectors[text] for _, text in shown]) @ answer.T).max(axis=1), kind="stable")
    left = min(MAX_CHARACTERS, BASE_CHARACTERS + CHARACTERS_A_SENTENCE * len(item.sentences))
    kept = {int(order[0])}
    left -= len(shown[order[0]][1])
    for position in map(int, order[1:]):
        if len(shown[position][1]) <= left:
            kept.add(position)
            left -= len(shown[position][1])
    by_passage: dict[int, list[str]] = {}
    for position in sorted(kept):
        by_passage.setdefault(shown[position][0], []).append(shown[position][1])
    return "\n\n".join(map(" ".join, by_passage.values()))[: 2 * MAX_CHARACTERS]


def _continuation(item: _Parsed, context: str) -> Continuation:
    question = f"Question: {item.question}\nAnswer:"
    return Continuation(f"{context}\n\n{question}" if context else question, item.sentences)
