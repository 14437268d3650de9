"""All warning signs of a system, measured on one table of evidence."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from ragbench.diagnosis import generator_signs, retriever_signs
from ragbench.diagnosis.sign import Sign, State, Thresholds

SIX: tuple[Callable[[pd.DataFrame, Thresholds], Sign], ...] = (
    generator_signs.wrong_despite_retrieval,
    generator_signs.domain_terms,
    generator_signs.hallucination,
    generator_signs.house_style,
    generator_signs.off_topic,
    generator_signs.synthesis,
)
"""The classical six."""
OTHERS: tuple[Callable[[pd.DataFrame, Thresholds], Sign], ...] = (
    retriever_signs.missed,
    retriever_signs.cut_off,
    generator_signs.over_refusal,
    generator_signs.answers_anyway,
    generator_signs.ignores_passages,
)
"""The retriever's counterpart, and what has to be told apart from the six."""


def all_signs(evidence: pd.DataFrame, topics: pd.DataFrame, thresholds: Thresholds | None = None) -> tuple[Sign, ...]:
    """Measure every sign.

    Args:
        evidence: see `evidence.gather`.
        topics: the topics of each row of `evidence`, see `topics.topics_of`.
    """
    limits = thresholds or Thresholds()
    measured = [measure(evidence, limits) for measure in (*SIX, *OTHERS)]
    measured.append(retriever_signs.blind_topic(evidence, topics, limits))
    return tuple(replace(sign, state=_state(sign, limits.fewest)) for sign in measured)


def _state(sign: Sign, fewest: int) -> State:
    if sign.n < fewest or np.isnan(sign.rate):
        return "unknown"
    if sign.low > sign.threshold:
        return "present"
    return "possible" if sign.rate > sign.threshold else "absent"
