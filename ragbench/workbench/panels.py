"""Figures of several panels: each takes tidy tables, draws, and returns the `Figure`; none computes or shows."""

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import DisplayHandle
from matplotlib.figure import Figure

from ragbench.workbench.plots import COLOURS


def joint_curves(log: pd.DataFrame, looks: pd.DataFrame) -> Figure:
    """Draw how joint training goes, in four panels: losses, entropies, gradient norms, and what dev says.

    `log` has a row a step: step, loss, contrastive, generator_loss, retriever_norm, generator_norm, retriever_entropy,
    generator_entropy. `looks` has a row a look at dev: step, loss, recall, own, shuffled.
    """
    figure, grid = plt.subplots(2, 2, figsize=(8.5, 5))
    panels = {
        "loss of each step": ["loss", "contrastive", "generator_loss"],
        "entropy over the passages (nats)": ["retriever_entropy", "generator_entropy"],
        "gradient norm": ["retriever_norm", "generator_norm"],
    }
    for ax, (title, names) in zip(grid.flat, panels.items(), strict=False):
        for name in names:
            if len(log) and log[name].any():
                ax.plot(log["step"], log[name], label=name.replace("_", " "))
        ax.set_title(title, loc="left", fontsize=10)
        if ax.lines:
            ax.legend(frameon=False, fontsize=8)
    ax = grid[1, 1]
    ax.plot(looks["step"], looks["loss"], "o-", color=COLOURS[0], label="loss of a token")
    ax.set_title("dev: loss (left), gold among the K (right)", loc="left", fontsize=10)
    right = ax.twinx()
    right.plot(looks["step"], looks["recall"], "s:", color=COLOURS[1], label="gold among the K")
    right.set_ylim(0, 1.03)
    right.grid(visible=False)
    for ax in grid[1]:
        ax.set_xlabel("step")
    return figure


def redraw(handle: DisplayHandle, figure: Figure) -> None:
    """Put a figure in the place of what a display shows, and close it."""
    handle.update(figure)
    plt.close(figure)


def drift(table: pd.DataFrame, change: int) -> Figure:
    """Plot what a monitor saw, a panel a signal: its effect window by window, alarms filled; a line where it changed.

    Args:
        table: columns window, signal, effect, low, high, alarm.
        change: the number of the question from which on something was different.
    """
    names = list(dict.fromkeys(table["signal"]))
    figure, panels = plt.subplots(1, len(names), figsize=(2.6 * len(names), 2.6), squeeze=False, layout="constrained")
    for axes, name in zip(panels[0], names, strict=True):
        part = table[table["signal"] == name]
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.axvline(change, color="0.6", linewidth=0.8, linestyle=":")
        axes.vlines(part["window"], part["low"], part["high"], color=COLOURS[0], linewidth=1.2)
        for alarm, face in ((False, "white"), (True, COLOURS[1])):
            shown = part[part["alarm"] == alarm]
            edge = COLOURS[1] if alarm else COLOURS[0]
            axes.plot(shown["window"], shown["effect"], "o", markerfacecolor=face, markeredgecolor=edge)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("question")
    panels[0][0].set_ylabel("change")
    plt.close(figure)
    return figure
