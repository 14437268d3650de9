"""Drift: do the questions of late, what is found for them, or the answers differ from what they were?

Every signal has an effect in its own units with an interval, and a p-value. After Holm's correction over the signals, a
period without drift raises any alarm with a probability of at most `ALPHA` (`benchmarks/drift.py` measures it).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp, permutation_test
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from ragbench.collection.schema import Collection, passage_texts
from ragbench.deployment.query_log import Entry
from ragbench.errors import RagbenchError
from ragbench.evaluation.answer_metrics import words
from ragbench.evaluation.comparison import holm
from ragbench.retrieval.encoder import Encoder, encode

ALPHA = 0.05
FEWEST = 20
"""Questions that both periods need."""
SHUFFLES = 9_999
"""So many that a p-value near the bound, divided by the number of signals, is not decided by chance."""
FOLDS = 5
CHANCE = 0.5
_RESAMPLES = 1000


@dataclass(frozen=True)
class Signal:
    """One thing that may drift.

    Attributes:
        name: what is looked at.
        before, after: its mean in the two periods.
        effect: by how much it changed, in the signal's units.
        interval: 95 %, of the effect.
        p_value, p_holm: of there being no change; the second corrected for the number of signals.
        alarm: whether that is below `ALPHA`.
    """

    name: str
    before: float
    after: float
    effect: float
    interval: tuple[float, float]
    p_value: float
    p_holm: float
    alarm: bool


def query_drift(
    before: Sequence[Entry], after: Sequence[Entry], collection: Collection, encoder: Encoder, seed: int = 0
) -> list[Signal]:
    """Compare two periods of a query log whose text was kept.

    - ``questions``: their embeddings, by the kernel two-sample test (Gretton et al. 2012) with random relabelling. Its
      size is how well a classifier that has not seen a question tells from which period it is, as the area under the
      ROC curve (Lopez-Paz and Oquab 2017): .5 is not at all, 1 always.
    - ``unknown words``: the share of a question's words that no passage has.
    - ``first score``: of the passage that was found first.
    - ``grounding`` and ``refusals`` of the answers.

    Raises:
        RagbenchError: a period has fewer than `FEWEST` questions, or no text.
    """
    for name, entries in (("first", before), ("second", after)):
        if len(entries) < FEWEST:
            raise RagbenchError(f"The {name} period has {len(entries)} questions; {FEWEST} are needed to see a drift.")
        if any(entry.question is None for entry in entries):
            raise RagbenchError(f"The log kept no text in the {name} period: compare only score_drift.")
    # In which order concurrent questions were answered is chance, and must not decide about folds and shuffles.
    texts = [sorted(entry.question or "" for entry in entries) for entries in (before, after)]
    vectors = [encode(encoder, each, "query", keep=False) for each in texts]
    vocabulary = _vocabulary(collection)
    unknown = [np.array([_unknown(text, vocabulary) for text in each]) for each in texts]
    return corrected(
        [
            _embeddings(vectors[0], vectors[1], seed),
            _means("unknown words", unknown[0], unknown[1], seed),
            *_of_answers(before, after, seed),
        ]
    )


def score_drift(before: Sequence[Entry], after: Sequence[Entry], seed: int = 0) -> list[Signal]:
    """Compare two periods of a query log by what needs no text: first scores, grounding, refusals.

    Raises:
        RagbenchError: a period has fewer than `FEWEST` questions.
    """
    if min(len(before), len(after)) < FEWEST:
        raise RagbenchError(f"Each period needs {FEWEST} questions to see a drift.")
    return corrected(_of_answers(before, after, seed))


def over_time(
    reference: Sequence[Entry], entries: Sequence[Entry], size: int, collection: Collection, encoder: Encoder
) -> pd.DataFrame:
    """Compare one window of a log after the other with a good period.

    Returns:
        Columns window (the number of its last question), signal, effect, low, high, p_holm, alarm. What is left over at
        the end is no window.
    """
    rows = []
    for start in range(0, len(entries) - size + 1, size):
        for signal in query_drift(reference, entries[start : start + size], collection, encoder):
            rows.append((start + size, signal.name, signal.effect, *signal.interval, signal.p_holm, signal.alarm))
    return pd.DataFrame(rows, columns=["window", "signal", "effect", "low", "high", "p_holm", "alarm"])


def signals_table(signals: Sequence[Signal]) -> pd.DataFrame:
    """Return a row a signal: its means before and after, the change with its interval, p, whether it is an alarm."""
    return pd.DataFrame(
        [
            {
                "signal": signal.name,
                "before": f"{signal.before:.3f}",
                "after": f"{signal.after:.3f}",
                "change": f"{signal.effect:+.3f} [{signal.interval[0]:+.3f}, {signal.interval[1]:+.3f}]",
                "p after Holm": f"{signal.p_holm:.3f}",
                "": "alarm" if signal.alarm else "quiet",
            }
            for signal in signals
        ]
    )


def corrected(signals: Sequence[Signal]) -> list[Signal]:
    """Return the signals with Holm's correction over them, and whether each is an alarm."""
    adjusted = holm([signal.p_value for signal in signals])
    return [
        Signal(**{**vars(signal), "p_holm": p, "alarm": p < ALPHA}) for signal, p in zip(signals, adjusted, strict=True)
    ]


def _of_answers(before: Sequence[Entry], after: Sequence[Entry], seed: int) -> list[Signal]:
    kinds: list[tuple[str, Callable[[Entry], float | None]]] = [
        ("first score", lambda entry: entry.scores[0] if entry.scores else None),
        ("grounding", lambda entry: entry.grounding),
        ("refusals", lambda entry: float(entry.refused)),
    ]
    found = []
    for name, value in kinds:
        one, other = (
            np.array([each for entry in entries if (each := value(entry)) is not None]) for entries in (before, after)
        )
        if min(len(one), len(other)) < FEWEST:
            continue
        if name == "first score":
            # Its whole distribution: a few questions far off change the mean little.
            signal = _means(name, one, other, seed)
            found.append(Signal(**{**vars(signal), "p_value": float(ks_2samp(one, other).pvalue)}))
        else:
            found.append(_means(name, one, other, seed))
    return found


def _embeddings(before: np.ndarray, after: np.ndarray, seed: int) -> Signal:
    rng = np.random.default_rng(seed)
    both = np.concatenate([before, after])
    squared = np.clip(2 - 2 * both @ both.T, 0, None)
    kernel = rbf_kernel(both, gamma=1 / float(np.median(squared[np.triu_indices(len(both), 1)]) or 1.0))
    n = len(before)
    own = _discrepancy(kernel, np.arange(len(both)) < n)
    shuffled = [_discrepancy(kernel, rng.permutation(len(both)) < n) for _ in range(SHUFFLES)]
    p_value = (1 + sum(each >= own for each in shuffled)) / (1 + SHUFFLES)
    later = np.arange(len(both)) >= n
    told = cross_val_predict(
        LogisticRegression(max_iter=1000),
        both,
        later,
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
        method="decision_function",
    )
    # Of each pair of an earlier and a later question, whether the later one is taken for the later one.
    right = np.sign(told[later][:, None] - told[~later][None, :]) / 2 + 0.5
    drawn = [right[rng.integers(0, len(right), len(right))][:, rng.integers(0, n, n)].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975]) - CHANCE
    auc = float(right.mean())
    return Signal("questions", CHANCE, auc, auc - CHANCE, (float(low), float(high)), p_value, p_value, False)


def _discrepancy(kernel: np.ndarray, first: np.ndarray) -> float:
    """Return the biased estimate of the squared maximum mean discrepancy between the first rows and the rest."""
    weights = np.where(first, 1 / first.sum(), -1 / (~first).sum())
    return float(weights @ kernel @ weights)


def _means(name: str, before: np.ndarray, after: np.ndarray, seed: int) -> Signal:
    before, after = np.sort(before), np.sort(after)  # the log's order is to decide nothing
    if np.ptp(np.concatenate([before, after])) == 0:
        p_value = 1.0
    else:
        p_value = float(
            permutation_test(
                (after, before),
                lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
                vectorized=True,
                n_resamples=SHUFFLES,
                rng=seed,
            ).pvalue
        )
    effect = float(after.mean() - before.mean())
    interval = _interval(before, after, seed)
    return Signal(name, float(before.mean()), float(after.mean()), effect, interval, p_value, p_value, False)


def _interval(before: np.ndarray, after: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the difference of means, each period resampled by itself."""
    rng = np.random.default_rng(seed)
    one, other = (
        values[rng.integers(0, len(values), (_RESAMPLES, len(values)))].mean(axis=1) for values in (before, after)
    )
    low, high = np.quantile(other - one, [0.025, 0.975])
    return float(low), float(high)


def _vocabulary(collection: Collection) -> set[str]:
    return {word for chunk in passage_texts(collection).chunks for text in chunk.to_pylist() for word in words(text)}


def _unknown(text: str, vocabulary: set[str]) -> float:
    found = words(text)
    return sum(word not in vocabulary for word in found) / len(found) if found else 0.0


@dataclass(frozen=True)
class KnowledgeDrift:
    """How a collection's passages differ from those of a bundle.

    Attributes:
        added, changed, removed: ids of passages; changed are those whose title or text is another.
        unknown_words: share of the words of added and changed passages that no passage of the bundle has.
        moved: mean cosine between the embeddings of changed passages then and now; None where none changed.
        share: passages that are added, changed or removed, of all there were and are.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    unknown_words: float
    moved: float | None
    share: float


def knowledge_drift(before: Collection, after: Collection, encoder: Encoder | None) -> KnowledgeDrift:
    """Compare two states of a knowledge base.

    Args:
        before: the bundle's passages.
        encoder: the bundle's bi-encoder; None for BM25 alone, for which nothing moves.
    """
    one, other = (
        dict(zip(each.corpus["_id"], passage_texts(each).to_pylist(), strict=True)) for each in (before, after)
    )
    added, removed = [name for name in other if name not in one], [name for name in one if name not in other]
    changed = [name for name, text in other.items() if name in one and one[name] != text]
    vocabulary = {word for text in one.values() for word in words(text)}
    fresh = [word for name in (*added, *changed) for word in words(other[name])]
    moved = None
    if changed and encoder is not None:
        old, new = (encode(encoder, [texts[name] for name in changed], "passage", keep=False) for texts in (one, other))
        moved = float((old * new).sum(axis=1).mean())
    return KnowledgeDrift(
        tuple(added),
        tuple(changed),
        tuple(removed),
        sum(word not in vocabulary for word in fresh) / len(fresh) if fresh else 0.0,
        moved,
        (len(added) + len(changed) + len(removed)) / max(1, len(one.keys() | other.keys())),
    )


def knowledge_table(found: KnowledgeDrift, shown: int = 4) -> pd.DataFrame:
    """Return a row a kind of change: how many passages, and the first of them."""
    kinds = {"added": found.added, "changed": found.changed, "removed": found.removed}
    rows = [(kind, len(ids), ", ".join(ids[:shown])) for kind, ids in kinds.items()]
    return pd.DataFrame(rows, columns=["passages", "how many", "such as"])
