"""Where the error comes from: the retriever, the generator, or both; and what repairing one of them could give.

Every question is answered under its retrieved passages, its gold passages and none (see `counterfactual`), and falls
into just one cell. Shares are of all questions that were scored under all three, with paired bootstrap intervals: every
share is resampled with the same draws of questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ragbench.diagnosis.evidence import STAGES
from ragbench.diagnosis.intervals import rate_interval
from ragbench.evaluation.scores import bootstrap_interval

CELLS = {
    "known": "right, and right without passages too",
    "helped": "right, thanks to the passages",
    "retriever": "wrong; right with the gold passages",
    "generator": "wrong, and still wrong with the gold passages, although all that is needed was shown",
    "both": "wrong, still wrong with the gold passages, and something needed was not shown",
    "spoilt": "wrong, also with the gold passages; right without any",
}
HEADROOM = {
    "now": "as it is",
    "retriever": "with a perfect retriever",
    "generator": "with a perfect generator",
    "both": "with both perfect",
}


@dataclass(frozen=True)
class Share:
    """A share of the questions with its 95 % bootstrap interval, and the questions it counts."""

    name: str
    text: str
    value: float
    low: float
    high: float
    query_ids: tuple[str, ...]


@dataclass(frozen=True)
class Attribution:
    """The split of the error.

    Attributes:
        n, scored: questions with gold passages that were asked, and those of them scored under all conditions.
        cells: `CELLS`, which add up to 1.
        headroom: the share of right answers as it is, and if one part alone, or both, were perfect.
        gains: headroom less ``now``, with a paired interval.
        losses: the questions of cell ``retriever`` and ``both``, by the stage at which the passages were lost.
    """

    n: int
    scored: int
    cells: tuple[Share, ...]
    headroom: tuple[Share, ...]
    gains: tuple[Share, ...]
    losses: tuple[Share, ...]

    def cell(self, name: str) -> Share:
        """Return one cell by its name."""
        return next(share for share in self.cells if share.name == name)

    def reachable(self, name: str) -> Share:
        """Return one headroom by its name."""
        return next(share for share in self.headroom if share.name == name)


def scored_rows(evidence: pd.DataFrame) -> pd.DataFrame:
    """Return the questions whose answer has an estimate of correctness under all three conditions."""
    columns = [f"correctness_{condition}" for condition in ("retrieved", "oracle", "none")]
    return evidence[evidence["stage"].notna() & evidence["answered"]].dropna(subset=columns)


def cells_of(rows: pd.DataFrame, right_from: float) -> pd.Series:
    """Return the cell of each scored question; an answer counts as right from a correctness of `right_from`."""
    retrieved, oracle, none = (rows[f"correctness_{name}"] >= right_from for name in ("retrieved", "oracle", "none"))
    shown = rows["stage"] == "shown"
    conditions = [retrieved & none, retrieved, oracle, none, shown]
    return pd.Series(
        np.select(conditions, ["known", "helped", "retriever", "spoilt", "generator"], "both"),
        index=rows.index,
        dtype=object,
    )


def reached(rows: pd.DataFrame, right_from: float) -> dict[str, pd.Series]:
    """Return, for each kind of headroom, whether each question would be right.

    A perfect retriever gives the answers under the gold passages. A perfect generator is right wherever all that is
    needed is shown whole, and keeps what is right now.
    """
    now = rows["correctness_retrieved"] >= right_from
    return {
        "now": now,
        "retriever": rows["correctness_oracle"] >= right_from,
        "generator": now | (rows["stage"] == "shown"),
        "both": pd.Series(True, index=rows.index),
    }


def attribute(evidence: pd.DataFrame, right_from: float = 0.5, seed: int = 0) -> Attribution | None:
    """Split the error; None if no question could be scored under all three conditions (no answers, or no references).

    The split by cells is of answers counted as right or wrong, so that every question has one place and the shares can
    be read as numbers of questions.
    """
    rows = scored_rows(evidence)
    if rows.empty:
        return None
    cell = cells_of(rows, right_from)
    would = reached(rows, right_from)
    lost = rows[cell.isin(["retriever", "both"])]["stage"]
    reasons = {
        "not found": "a needed passage is not among those ranked",
        "not shown": "a needed passage is ranked, but too low to be shown",
        "cut off": "a needed passage is shown, but cut by the length limit",
        "shown": "all that is needed is shown, but what stands beside it misleads",
    }
    return Attribution(
        int((evidence["stage"].notna() & evidence["asked"]).sum()),
        len(rows),
        tuple(_share(name, text, rows, cell == name, seed) for name, text in CELLS.items()),
        (
            *(_share(name, text, rows, would[name], seed) for name, text in HEADROOM.items() if name != "both"),
            Share("both", HEADROOM["both"], 1.0, 1.0, 1.0, tuple(rows["query_id"])),  # by definition, not as measured
        ),
        tuple(
            _gain(name, text, rows, would[name].astype(float) - would["now"].astype(float), seed)
            for name, text in HEADROOM.items()
            if name != "now"
        ),
        tuple(
            _share(stage, reasons[stage], rows, lost.eq(stage).reindex(rows.index, fill_value=False), seed)
            for stage in STAGES
        ),
    )


def _gain(name: str, text: str, rows: pd.DataFrame, values: pd.Series, seed: int) -> Share:
    numbers = values.to_numpy(dtype=float)
    low, high = bootstrap_interval(numbers, seed) or (float("nan"), float("nan"))
    return Share(name, text, float(numbers.mean()), low, high, tuple(rows["query_id"][numbers > 0]))


def _share(name: str, text: str, rows: pd.DataFrame, values: pd.Series, seed: int) -> Share:
    numbers = values.to_numpy(dtype=float)
    low, high = bootstrap_interval(numbers, seed) or (float("nan"), float("nan"))
    if len(set(numbers)) == 1 and numbers[0] in (0.0, 1.0):
        # Resampling cannot show what was not seen once in these questions; Wilson's interval allows for it.
        low, high = rate_interval(int(numbers.sum()), len(numbers))
    return Share(name, text, float(numbers.mean()), low, high, tuple(rows["query_id"][numbers > 0]))


def shares_table(shares: Sequence[Share]) -> pd.DataFrame:
    """Return columns name, text, value, low, high, questions."""
    rows = [(s.name, s.text, s.value, s.low, s.high, len(s.query_ids)) for s in shares]
    return pd.DataFrame(rows, columns=["name", "text", "value", "low", "high", "questions"])
