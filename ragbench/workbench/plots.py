"""Plots: each takes a tidy table and an optional `ax`, draws, and returns the `Axes`; none computes or shows."""

from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes

from ragbench.files import atomic_path

COLOURS = ("#0b6b57", "#c2571a", "#4a5fa5", "#8a8f98", "#9b3d6e")


def set_style() -> None:
    """Set the look of all plots: no frame, quiet grid, sharp on high-resolution screens."""
    mpl.rcParams.update(
        {
            "figure.dpi": 120,
            "savefig.dpi": 160,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e9ed",
            "axes.edgecolor": "#8a8f98",
            "axes.prop_cycle": cycler(color=COLOURS),
        }
    )


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=(width, height))[1]


def metric_intervals(table: pd.DataFrame, by: str = "split", ax: Axes | None = None) -> Axes:
    """Draw means with their 95 % intervals, a row a metric and a colour for each value of `by`.

    `table` has columns metric, mean, low, high and `by`.
    """
    ax = _intervals(table, "mean", by, ax)
    ax.set_xlim(0, 1)
    ax.set_xlabel("mean over questions, with 95 % interval")
    return ax


def differences(table: pd.DataFrame, by: str = "split", ax: Axes | None = None) -> Axes:
    """Draw paired differences with their 95 % intervals around a line at 0.

    A row a metric and a colour for each value of `by`. `table` has columns metric, difference, low, high and `by`.
    """
    ax = _intervals(table, "difference", by, ax)
    ax.axvline(0, color="#1b1f24", linewidth=1, zorder=1)
    ax.set_xlabel("mean paired difference, with 95 % interval; better to the right of 0")
    return ax


def _intervals(table: pd.DataFrame, value: str, by: str, ax: Axes | None) -> Axes:
    metrics = list(dict.fromkeys(table["metric"]))
    groups = list(dict.fromkeys(table[by]))
    ax = _axes(ax, 7.5, 0.6 + max(0.36, 0.15 * len(groups)) * len(metrics))
    step = min(0.22, 0.8 / max(len(groups), 1))
    for number, group in enumerate(groups):
        part = table[table[by] == group]
        shift = (number - (len(groups) - 1) / 2) * step
        y = np.array([metrics.index(metric) for metric in part["metric"]]) + shift
        ax.hlines(y, part["low"], part["high"], color=COLOURS[number % len(COLOURS)], linewidth=2.2, alpha=0.55)
        ax.plot(part[value], y, "o", color=COLOURS[number % len(COLOURS)], markersize=5, label=group, clip_on=False)
    ax.set_yticks(range(len(metrics)), metrics)
    ax.set_ylim(max(len(metrics), 1) - 0.5, -0.5)
    if groups:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def before_after(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw each question's score after over its score before; above the diagonal is better.

    `table` has columns before, after; questions without both are left out. Points that fall together are darker.
    """
    ax = _pairs(table.dropna(subset=["before", "after"]), 1, ax)
    ax.plot([0, 1], [0, 1], color="#8a8f98", linewidth=1, zorder=1)
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("before")
    ax.set_ylabel("after")
    return ax


def rank_shift(table: pd.DataFrame, depth: int, ax: Axes | None = None) -> Axes:
    """Draw each question's best gold rank after over the one before, both logarithmic; below the diagonal is better.

    `table` has columns before, after, of which missing ones are drawn beyond the `depth` of the run.
    """
    beyond = 2 * depth
    ranks = table[["before", "after"]].astype("Float64").fillna(beyond).astype(float)
    ax = _pairs(ranks, -1, ax)
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1000) if tick <= depth]
    ax.plot([1, beyond], [1, beyond], color="#8a8f98", linewidth=1, zorder=1)
    for axis, name in ((ax.xaxis, "before"), (ax.yaxis, "after")):
        axis.set_label_text(f"rank of the best gold passage {name}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    for set_ticks in (ax.set_xticks, ax.set_yticks):
        set_ticks([*ticks, beyond], [*map(str, ticks), f"> {depth}"])
        set_ticks([], minor=True)
    return ax


def _pairs(table: pd.DataFrame, better: int, ax: Axes | None) -> Axes:
    ax = _axes(ax, 4.6, 4.4)
    ax.plot(table["before"], table["after"], "o", color=COLOURS[0], alpha=0.35, markersize=6, markeredgewidth=0)
    ax.set_aspect("equal", adjustable="box")
    moved = np.sign(table["after"] - table["before"])
    words = {better: "better", -better: "worse", 0: "unchanged"}
    counts = [f"{int((moved == sign).sum())} {word}" for sign, word in words.items()]
    ax.set_title(" · ".join(counts), loc="left", fontsize=10)
    return ax


def gold_ranks(table: pd.DataFrame, depth: int, ax: Axes | None = None) -> Axes:
    """Draw how many questions have their best gold passage at which rank. `table` has a column rank."""
    edges = [1, 2, 4, 6, 11, 21, 51, depth + 1]
    edges = sorted({edge for edge in edges if edge <= depth + 1} | {depth + 1})
    labels = [str(a) if b - a == 1 else f"{a}–{b - 1}" for a, b in pairwise(edges)]
    ranks = table["rank"].dropna().to_numpy(dtype=int)
    counts = [int(((ranks >= a) & (ranks < b)).sum()) for a, b in pairwise(edges)]
    return _bars(
        [*labels, f"below {depth}"], [*counts, int(table["rank"].isna().sum())], "rank of the best gold passage", ax
    )


def _bars(labels: list[str], counts: list[int], label: str, ax: Axes | None) -> Axes:
    ax = _axes(ax, 7.5, 2.8)
    bars = ax.bar(labels, counts, color=COLOURS[0], width=0.72)
    bars[-1].set_color(COLOURS[1])
    ax.bar_label(bars, padding=2, fontsize=9, color="#5b6470")
    ax.grid(axis="x", visible=False)
    ax.set_xlabel(label)
    ax.set_ylabel("questions")
    return ax


def funnel(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw how many questions pass each step. `table` has columns step, questions, n."""
    ax = _axes(ax, 7.5, 0.7 + 0.4 * len(table))
    bars = ax.barh(table["step"], table["questions"], color=COLOURS[0], height=0.65)
    ax.bar_label(
        bars, [f"{q} of {n}" for q, n in zip(table["questions"], table["n"], strict=True)], padding=4, fontsize=9
    )
    ax.invert_yaxis()
    ax.set_xlim(0, max(int(table["n"].max()), 1) * 1.12)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("questions for which everything needed got this far")
    return ax


def filter_steps(table: pd.DataFrame, label: str, ax: Axes | None = None) -> Axes:
    """Draw how many are left after each filter. `table` has columns step, left."""
    ax = _axes(ax, 7.5, 0.7 + 0.34 * len(table))
    bars = ax.barh(table["step"], table["left"], color=COLOURS[0], height=0.65)
    ax.bar_label(bars, padding=4, fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0, max(int(table["left"].max()), 1) * 1.12)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label)
    return ax


def outcomes(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw what became of the candidates for hard negatives. `table` has columns outcome, candidates."""
    ax = filter_steps(table.rename(columns={"outcome": "step", "candidates": "left"}), "candidates", ax)
    ax.patches[0].set_color(COLOURS[1])
    return ax


def training_curves(log: pd.DataFrame, base_dev: float, measure: str = "nDCG@10", ax: Axes | None = None) -> Axes:
    """Draw the loss of every step and, on an axis of its own, a measure on dev with the base model's as a line.

    `log` has columns step, loss, dev.
    """
    ax = _axes(ax, 7.5, 2.8)
    losses = log.dropna(subset=["loss"])
    ax.plot(losses["step"], losses["loss"], color=COLOURS[3], label="loss")
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    dev = log.dropna(subset=["dev"])
    right = ax.twinx()
    right.plot([0, *dev["step"]], [base_dev, *dev["dev"]], "o-", color=COLOURS[0], label=f"{measure} on dev")
    right.axhline(base_dev, color=COLOURS[0], linewidth=1, linestyle=":")
    right.set_ylabel(f"{measure} on dev")
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    handles = [*ax.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    ax.legend(handles, ["loss", f"{measure} on dev"], frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return ax


CELL_COLOURS = {
    "known": "#5fa893",
    "helped": "#0b6b57",
    "retriever": "#c2571a",
    "generator": "#9b3d6e",
    "both": "#4a5fa5",
    "spoilt": "#8a8f98",
}


def error_split(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw shares that add up to 1 as one bar, each part labelled with its share and interval.

    `table` has columns name (of `CELL_COLOURS`), text, value, low, high; parts are drawn in its order.
    """
    ax = _axes(ax, 8.5, 1.2 + 0.28 * len(table))
    left = 0.0
    for _, row in table.iterrows():
        label = f"{row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}]  {row['text']}"
        ax.barh([0], [row["value"]], left=left, color=CELL_COLOURS[row["name"]], height=0.6, label=label)
        if row["value"] >= 0.06:
            ax.text(left + row["value"] / 2, 0, f"{row['value']:.0%}", ha="center", va="center", color="white")
        left += row["value"]
    ax.set_xlim(0, 1)
    ax.set_yticks([])
    ax.grid(visible=False)
    ax.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    ax.set_title("Every answered and scored question, by what became of it", loc="left", fontsize=10)
    if len(table):
        figure = ax.get_figure(root=True)
        assert figure is not None
        figure.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside lower left", fontsize=9)
    return ax


def lengths(values: np.ndarray, label: str, ax: Axes | None = None) -> Axes:
    """Draw the distribution of lengths on a logarithmic axis."""
    ax = _axes(ax, 7.5, 2.4)
    values = np.maximum(np.asarray(values), 1)
    ax.hist(values, bins=list(np.geomspace(values.min(), values.max() + 1, 40)), color=COLOURS[0])
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    ax.set_xlabel(label)
    ax.set_ylabel("passages")
    return ax


def save(ax: Axes, path: Path) -> None:
    """Write the figure of `ax` as PNG."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
