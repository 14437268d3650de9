"""Where positives come from: labels, written questions, and the corpus's own structure, each switched on by name."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ragbench.collection.schema import Collection
from ragbench.errors import RagbenchError
from ragbench.generation.generate import Generator
from ragbench.retrieval.retrieve import Retriever
from ragbench.training.leakage import held_out_questions, leaks
from ragbench.training.pairs import Pair, labelled_pairs, structural_pairs, uncovered
from ragbench.training.synthetic import Filtered, Removed, funnel, synthetic_pairs

SOURCES = ("labelled", "synthetic", "title", "sentence")


@dataclass(frozen=True)
class Sources:
    """Which positives to gather, and how many.

    Attributes:
        names: of `SOURCES`.
        synthetic_passages: passages without a labelled question that the generator writes questions about.
        synthetic_per_passage: questions to ask for about each.
        round_trip_depth: a written question is kept if the base retriever finds its passage among so many.
        structural_passages: passages that give their title or first sentence as a question.
        seed: of the passages that are drawn.
    """

    names: tuple[str, ...] = ("labelled", "synthetic")
    synthetic_passages: int = 60
    synthetic_per_passage: int = 2
    round_trip_depth: int = 5
    structural_passages: int = 300
    seed: int = 0


@dataclass(frozen=True)
class Gathered:
    """Positives, what was removed and why, and what became of the written questions on their way."""

    pairs: list[Pair]
    removed: list[Removed]
    written: Filtered

    def funnel(self) -> pd.DataFrame:
        """Return columns step, left: what each filter left of the written questions."""
        return funnel(self.written)

    def counts(self) -> pd.DataFrame:
        """Return columns source, pairs: how many pairs each source gave."""
        kept = pd.Series([pair.source for pair in self.pairs]).value_counts()
        return pd.DataFrame({"source": SOURCES, "pairs": [int(kept.get(name, 0)) for name in SOURCES]})


def gather(collection: Collection, sources: Sources, generator: Generator, retriever: Retriever) -> Gathered:
    """Gather positives from every source that is switched on, without those that ask a held-out question.

    Args:
        generator: writes the synthetic questions; the backend ``none`` writes none.
        retriever: the base retriever, for the round trip.

    Raises:
        RagbenchError: a source is unknown, or none of them gave a pair.
    """
    unknown = [name for name in sources.names if name not in SOURCES]
    if unknown:
        raise RagbenchError(f"prep_sources has '{unknown[0]}'; the sources are {', '.join(SOURCES)}.")
    labelled = labelled_pairs(collection) if "labelled" in sources.names else []
    written = Filtered([], [])
    if "synthetic" in sources.names and sources.synthetic_passages:
        found = uncovered(collection, labelled, sources.synthetic_passages, sources.seed)
        written = synthetic_pairs(
            collection,
            found,
            generator,
            retriever,
            per_passage=sources.synthetic_per_passage,
            round_trip_depth=sources.round_trip_depth,
        )
    kinds = [name for name in sources.names if name in ("title", "sentence")]
    found = uncovered(collection, labelled, sources.structural_passages if kinds else 0, sources.seed + 1)
    pairs, leaking = _without_leaks(collection, [*labelled, *written.kept, *structural_pairs(found, kinds)])
    if not pairs:
        raise RagbenchError(
            f"The collection '{collection.name}' gave no training pair from {', '.join(sources.names) or 'no source'}. "
            f"Add questions to its train split, or sources to prep_sources ({', '.join(SOURCES)})."
        )
    return Gathered(pairs, [*written.removed, *leaking], written)


def _without_leaks(collection: Collection, pairs: Sequence[Pair]) -> tuple[list[Pair], list[Removed]]:
    copied = leaks(pairs, collection)
    held_out = held_out_questions(collection)
    removed = [
        Removed(pair.question, pair.passage_id, "leak", f"{pair.source}, copies {name}: '{held_out[name]}'")
        for place, name in copied.items()
        for pair in [pairs[place]]
    ]
    return [pair for place, pair in enumerate(pairs) if place not in copied], removed
