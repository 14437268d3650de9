"""What is watched during joint training, on questions of dev that nothing is learned from; and when it must stop."""

from collections.abc import Sequence
from dataclasses import dataclass

from ragbench.training.guards import COLLAPSED, FEW_DISTINCT

RECALL_LOSS = 0.05
"""Share of dev's questions whose gold passages may get lost."""


@dataclass(frozen=True)
class Look:
    """Dev after some steps, means over its questions.

    Attributes:
        step: how many steps had been taken.
        loss: the negative log-likelihood of an answer's token with the passages weighed by the retriever
            (RAG-Sequence), in nats. The best state is the one in which it is lowest.
        recall: share of the questions with a gold passage among the K that are weighed.
        distinct: how many different passages are ranked first, as a share of the questions.
        cosine: between the embeddings of different questions.
        own, shuffled: log-likelihood of an answer's token given the question's first passage, and given that of
            another question, in nats.
        retriever_entropy, generator_entropy: of the two distributions over the K passages, in nats.
        fresh: share of the K passages that the index had ranked among the K before it was made anew; 1 where it never
            has to be.
    """

    step: int
    loss: float
    recall: float
    distinct: float
    cosine: float
    own: float
    shuffled: float
    retriever_entropy: float
    generator_entropy: float
    fresh: float = 1.0


def alarm(start: Look, now: Look) -> str | None:
    """Return why training must stop, or None.

    The retriever has collapsed (embeddings of different questions alike, or few passages ranked first for all), gold
    passages get lost, or the generator no longer cares which passage it is shown.
    """
    if now.cosine >= max(COLLAPSED, start.cosine + 0.05):
        return f"different questions have nearly the same embedding (mean cosine {now.cosine:.2f})"
    if now.distinct < FEW_DISTINCT * start.distinct:
        return f"{now.distinct:.0%} different passages are ranked first, {start.distinct:.0%} before"
    if now.recall < start.recall - RECALL_LOSS:
        return f"gold passages are found for {now.recall:.0%} of dev's questions, {start.recall:.0%} before"
    if start.own > start.shuffled and now.own <= now.shuffled:
        return "answers are as likely given another question's passage as given their own: passages no longer matter"
    return None


def best_of(looks: Sequence[Look]) -> Look:
    """Return the look with the lowest loss, of equal ones the first."""
    return min(looks, key=lambda look: look.loss)
