import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes

from ragbench.diagnosis.attribution import CELLS
from ragbench.workbench import plots

METRICS = pd.DataFrame(
    [
        ("ndcg@10", "dev", 0.5, 0.4, 0.6),
        ("recall@5", "dev", 0.7, 0.6, 0.8),
        ("ndcg@10", "test", 0.3, 0.2, 0.4),
    ],
    columns=["metric", "split", "mean", "low", "high"],
)
RANKS = pd.DataFrame({"rank": pd.array([1, 1, 2, 3, 5, 7, 100, None, None], dtype="Int64")})
SPLIT = pd.DataFrame(
    [
        ("helped", "right, thanks to the passages", 0.55, 0.45, 0.65),
        ("retriever", "wrong; right with the gold passages", 0.4, 0.3, 0.5),
        ("spoilt", "right without any", 0.05, 0.01, 0.1),
    ],
    columns=["name", "text", "value", "low", "high"],
)
CHANGES = pd.DataFrame(
    [
        ("ndcg@10", "test", 0.08, 0.03, 0.13),
        ("answer_f1", "test", -0.02, -0.05, 0.01),
        ("ndcg@10", "ood", -0.01, -0.04, 0.02),
    ],
    columns=["metric", "split", "difference", "low", "high"],
)
SCORES = pd.DataFrame({"before": [0.0, 0.5, 1.0, 0.3, None, 0.2], "after": [1.0, 0.5, 0.2, 0.3, 0.4, None]})
SHIFTS = pd.DataFrame({"before": [7, 1, None, 3, None], "after": [1, 30, 2, None, None]}, dtype=pd.Int64Dtype())
STEPS = pd.DataFrame({"step": ["found", "shown", "cited"], "questions": [9, 6, 0], "n": [10, 10, 10]})


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def bars(ax: Axes) -> dict[str, float]:
    names = [label.get_text() for label in ax.get_xticklabels()]
    return dict(zip(names, [bar.get_height() for bar in ax.patches], strict=True))


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.metric_intervals(METRICS, ax=ax),
        lambda ax: plots.differences(CHANGES, ax=ax),
        lambda ax: plots.before_after(SCORES, ax=ax),
        lambda ax: plots.rank_shift(SHIFTS, 100, ax=ax),
        lambda ax: plots.gold_ranks(RANKS, 100, ax=ax),
        lambda ax: plots.funnel(STEPS, ax=ax),
        lambda ax: plots.error_split(SPLIT, ax=ax),
        lambda ax: plots.lengths(np.array([10, 200, 3000]), "characters", ax=ax),
    ],
    ids=[
        "metric_intervals",
        "differences",
        "before_after",
        "rank_shift",
        "gold_ranks",
        "funnel",
        "error_split",
        "lengths",
    ],
)
def test_a_plot_draws_into_the_axes_it_is_given_or_makes_its_own(draw):
    _, (left, right) = plt.subplots(1, 2)
    assert draw(right) is right
    assert right.has_data()
    assert not left.has_data()
    own = draw(None)
    assert own.figure is not right.figure
    assert own.has_data()
    assert own.get_xlabel() or own.get_title(loc="left")


def test_metric_intervals_draws_a_point_and_a_line_for_every_mean():
    ax = plots.metric_intervals(METRICS)
    assert [line.get_label() for line in ax.lines] == ["dev", "test"]
    assert [list(line.get_xdata()) for line in ax.lines] == [[0.5, 0.7], [0.3]]
    ends = [segment[:, 0].tolist() for lines in ax.collections for segment in lines.get_segments()]
    assert ends == [[0.4, 0.6], [0.6, 0.8], [0.2, 0.4]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["ndcg@10", "recall@5"]


def test_metric_intervals_puts_points_of_one_metric_beside_each_other_on_its_row():
    ax = plots.metric_intervals(METRICS)
    (dev, recall), (test,) = (line.get_ydata() for line in ax.lines)
    assert dev != test
    assert max(abs(dev - 0), abs(test - 0), abs(recall - 1)) < 0.5
    bottom, top = ax.get_ylim()
    assert top < dev < recall < bottom


def test_metric_intervals_leaves_out_what_was_not_scored():
    table = pd.DataFrame([("a", "dev", None, None, None), ("b", "dev", 0.5, None, None)], columns=METRICS.columns)
    ax = plots.metric_intervals(table)
    drawn = np.asarray(ax.lines[0].get_xdata(), dtype=float)
    assert np.isnan(drawn[0])
    assert drawn[1] == 0.5


def test_metric_intervals_tells_more_groups_apart_than_it_has_colours():
    table = pd.DataFrame([("a", f"s{i}", 0.5, 0.4, 0.6) for i in range(6)], columns=METRICS.columns)
    ax = plots.metric_intervals(table)
    assert len(ax.lines) == 6
    assert len({float(line.get_ydata()[0]) for line in ax.lines}) == 6
    assert all(abs(line.get_ydata()[0]) <= 0.55 for line in ax.lines)


def test_differences_draws_every_split_in_its_colour_around_a_line_at_0():
    ax = plots.differences(CHANGES)
    test, ood, zero = ax.lines
    assert [line.get_label() for line in (test, ood)] == ["test", "ood"]
    assert [list(line.get_xdata()) for line in (test, ood)] == [[0.08, -0.02], [-0.01]]
    assert test.get_color() != ood.get_color()
    assert list(zero.get_xdata()) == [0, 0]
    ends = [segment[:, 0].tolist() for lines in ax.collections for segment in lines.get_segments()]
    assert ends == [[0.03, 0.13], [-0.05, 0.01], [-0.04, 0.02]]
    low, high = ax.get_xlim()
    assert low < -0.05 and high > 0.13


def test_differences_draws_systems_in_their_colours_if_asked():
    ax = plots.differences(CHANGES.assign(system=["a", "b", "a"]), by="system")
    assert [line.get_label() for line in ax.lines[:2]] == ["a", "b"]


def test_differences_draws_what_could_not_be_compared_as_nothing():
    empty = CHANGES.assign(difference=np.nan, low=np.nan, high=np.nan)
    assert np.isnan(plots.differences(empty).lines[0].get_xdata()).all()
    assert [list(line.get_xdata()) for line in plots.differences(CHANGES.iloc[:0]).lines] == [[0, 0]]


def test_before_after_draws_a_point_for_every_pair_and_the_diagonal():
    ax = plots.before_after(SCORES)
    points, diagonal = ax.lines
    assert list(zip(*points.get_data(), strict=True)) == [(0.0, 1.0), (0.5, 0.5), (1.0, 0.2), (0.3, 0.3)]
    assert (list(diagonal.get_xdata()), list(diagonal.get_ydata())) == ([0, 1], [0, 1])
    assert points.get_alpha() < 1
    assert ax.get_xlim() == ax.get_ylim()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("before", "after")
    assert ax.get_title(loc="left") == "1 better · 1 worse · 2 unchanged"


def test_rank_shift_draws_what_was_not_found_beyond_the_depth_on_logarithmic_axes():
    ax = plots.rank_shift(SHIFTS, 100)
    points, diagonal = ax.lines
    beyond = 200
    assert list(zip(*points.get_data(), strict=True)) == [
        (7, 1), (1, 30), (beyond, 2), (3, beyond), (beyond, beyond),
    ]  # fmt: skip
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [1, beyond]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["1", "3", "10", "30", "100", "> 100"]
    assert ax.get_title(loc="left") == "2 better · 2 worse · 1 unchanged"
    assert "before" in ax.get_xlabel() and "after" in ax.get_ylabel()


@pytest.mark.parametrize(
    "draw", [plots.before_after, lambda table: plots.rank_shift(table.astype("Int64"), 10)], ids=["scores", "ranks"]
)
def test_plots_of_pairs_draw_a_split_without_questions(draw):
    ax = draw(SCORES.iloc[:0])
    assert not len(ax.lines[0].get_xdata())
    assert ax.get_title(loc="left") == "0 better · 0 worse · 0 unchanged"


def test_gold_ranks_counts_questions_in_growing_ranges():
    assert bars(plots.gold_ranks(RANKS, 100)) == {
        "1": 2, "2–3": 2, "4–5": 1, "6–10": 1, "11–20": 0, "21–50": 0, "51–100": 1, "below 100": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("depth", "labels"),
    [(1, ["1", "below 1"]), (4, ["1", "2–3", "4", "below 4"]), (50, None), (1000, None)],
)
def test_gold_ranks_covers_any_depth(depth, labels):
    table = pd.DataFrame({"rank": pd.array([1, depth, None], dtype="Int64")})
    found = bars(plots.gold_ranks(table, depth))
    assert sum(found.values()) == 3
    assert found[f"below {depth}"] == 1
    assert labels is None or list(found) == labels


@given(st.lists(st.none() | st.integers(1, 30), max_size=40))
@settings(max_examples=15, deadline=None)
def test_gold_ranks_counts_every_question_once(ranks):
    table = pd.DataFrame({"rank": pd.array(ranks, dtype="Int64")})
    _, ax = plt.subplots()
    found = bars(plots.gold_ranks(table, 30, ax=ax))
    plt.close(ax.figure)
    assert sum(found.values()) == len(ranks)
    assert found["1"] == ranks.count(1)
    assert found["below 30"] == ranks.count(None)


def test_funnel_draws_a_bar_a_step_from_top_to_bottom_with_its_share():
    ax = plots.funnel(STEPS)
    assert [bar.get_width() for bar in ax.patches] == [9, 6, 0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["found", "shown", "cited"]
    assert [text.get_text() for text in ax.texts] == ["9 of 10", "6 of 10", "0 of 10"]
    assert ax.yaxis_inverted()
    assert ax.get_xlim()[1] >= 10


def test_funnel_draws_a_run_without_questions():
    ax = plots.funnel(STEPS.assign(questions=0, n=0))
    assert [bar.get_width() for bar in ax.patches] == [0, 0, 0]


def legend(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.figure.legends[0].get_texts()]


def test_error_split_draws_the_shares_one_after_the_other():
    ax = plots.error_split(SPLIT)
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.55, 0.4, 0.05])
    assert [bar.get_x() for bar in ax.patches] == pytest.approx([0, 0.55, 0.95])
    assert ax.get_xlim() == (0, 1)
    assert "question" in ax.get_title(loc="left")


def test_error_split_names_every_share_with_its_interval_and_writes_it_where_there_is_room():
    ax = plots.error_split(SPLIT)
    assert legend(ax) == [
        "55% [45%, 65%]  right, thanks to the passages",
        "40% [30%, 50%]  wrong; right with the gold passages",
        "5% [1%, 10%]  right without any",
    ]
    assert [text.get_text() for text in ax.texts] == ["55%", "40%"]


def test_error_split_gives_a_cell_its_colour_whatever_else_there_is():
    *_, last = plots.error_split(SPLIT).patches
    [alone] = plots.error_split(SPLIT[SPLIT["name"] == "spoilt"]).patches
    assert alone.get_facecolor() == last.get_facecolor()


def test_error_split_has_a_colour_for_every_cell_of_the_attribution():
    assert set(plots.CELL_COLOURS) == set(CELLS)
    assert len(set(plots.CELL_COLOURS.values())) == len(CELLS)


def test_error_split_in_given_axes_names_only_its_own_shares():
    _, (left, right) = plt.subplots(1, 2)
    left.plot([0, 1], label="something else")
    assert len(legend(plots.error_split(SPLIT, ax=right))) == len(SPLIT)


def test_error_split_draws_an_audit_without_answers():
    ax = plots.error_split(SPLIT.iloc[:0])
    assert not ax.patches
    assert not ax.figure.legends


@pytest.mark.parametrize("values", [[5], [1, 1, 1], [0, 3], list(range(1, 200)), [10, 100_000]])
def test_lengths_counts_every_passage(values):
    ax = plots.lengths(np.array(values), "characters")
    assert sum(bar.get_height() for bar in ax.patches) == len(values)
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "characters"


def test_a_saved_plot_is_a_png_of_the_whole_figure(tmp_path):
    plots.save(plots.funnel(STEPS), tmp_path / "funnel.png")
    height, width, _ = plt.imread(tmp_path / "funnel.png").shape
    assert (tmp_path / "funnel.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert width > height > 100
    assert [path.name for path in tmp_path.iterdir()] == ["funnel.png"]


def test_the_style_is_set_for_later_plots():
    with mpl.rc_context():
        plots.set_style()
        ax = plots.funnel(STEPS)
        assert not ax.spines["top"].get_visible()
