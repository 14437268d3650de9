import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragbench.evaluation.scores import COLUMNS, bootstrap_interval, summarise, write_scores


def table(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def test_the_interval_agrees_with_the_normal_one_on_many_values():
    values = np.random.default_rng(1).normal(0.6, 0.2, size=1000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 1000**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_about_95_of_100_intervals_cover_the_true_mean():
    random = np.random.default_rng(2)
    intervals = [bootstrap_interval(random.binomial(1, 0.3, size=100).astype(float), resamples=400) for _ in range(200)]
    covered = sum(low <= 0.3 <= high for low, high in intervals)
    assert 180 <= covered <= 199


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(3).random(30)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


def test_fewer_than_two_values_have_no_interval():
    assert bootstrap_interval(np.array([])) is None
    assert bootstrap_interval(np.array([0.5])) is None


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_constant_values_have_an_interval_of_that_value(value):
    assert bootstrap_interval(np.full(20, value)) == pytest.approx((value, value))


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=30))
@example(values=[0.3553222055117769, 0.3553222055117769])
def test_the_interval_lies_within_the_values(values):
    low, high = bootstrap_interval(np.array(values), resamples=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_a_missing_value_counts_in_n_but_not_in_the_mean():
    scores = table(*[("base", "test", "f1", f"q{i}", value) for i, value in enumerate([1.0, 0.5, None, 0.0, np.nan])])
    entry = summarise(scores)["base"]["test"]["f1"]
    assert entry["mean"] == 0.5 and entry["n"] == 5 and entry["scored"] == 3
    assert entry["ci"] == list(bootstrap_interval(np.array([1.0, 0.5, 0.0])))


def test_nothing_scored_is_null_and_one_value_has_no_interval():
    scores = table(
        ("base", "test", "f1", "q1", None), ("base", "test", "f1", "q2", None), ("base", "ood", "f1", "q3", 1.0)
    )
    assert summarise(scores) == {
        "base": {
            "test": {"f1": {"mean": None, "ci": None, "n": 2, "scored": 0}},
            "ood": {"f1": {"mean": 1.0, "ci": None, "n": 1, "scored": 1}},
        }
    }


def test_systems_splits_and_metrics_are_summed_up_apart():
    rows = [
        (system, split, metric, f"q{i}", float(place == i))
        for place, (system, split, metric) in enumerate(
            [("a", "s", "m"), ("a", "s", "n"), ("a", "t", "m"), ("b", "s", "m")]
        )
        for i in range(4)
    ]
    summary = summarise(table(*rows))
    assert {system: {split: set(ms) for split, ms in splits.items()} for system, splits in summary.items()} == {
        "a": {"s": {"m", "n"}, "t": {"m"}},
        "b": {"s": {"m"}},
    }
    assert summary["a"]["t"]["m"]["mean"] == 0.25


def test_a_summary_is_plain_json_and_the_same_for_the_same_seed():
    scores = table(*[("base", "test", "f1", f"q{i}", i / 10) for i in range(10)], ("base", "test", "em", "q", None))
    first = json.dumps(summarise(scores, seed=3), allow_nan=False)
    assert first == json.dumps(summarise(scores, seed=3), allow_nan=False)
    assert first != json.dumps(summarise(scores, seed=4), allow_nan=False)


def test_no_scores_give_an_empty_summary():
    assert summarise(pd.DataFrame(columns=COLUMNS)) == {}


def test_written_scores_read_back_in_the_contracts_columns_with_nulls(tmp_path):
    scores = table(("base", "test", "f1", "q1", 0.25), ("base", "test", "f1", "q2", None)).assign(extra=1)
    write_scores(scores, tmp_path / "new" / "scores.parquet")
    again = pd.read_parquet(tmp_path / "new" / "scores.parquet")
    assert list(again.columns) == ["system", "split", "metric", "query_id", "value"]
    assert again["value"].dtype == "float64" and again["value"].isna().tolist() == [False, True]
    assert again.iloc[0].tolist() == ["base", "test", "f1", "q1", 0.25]


def test_scores_without_any_value_can_be_written(tmp_path):
    write_scores(table(("base", "test", "f1", "q1", None)), tmp_path / "scores.parquet")
    assert pd.read_parquet(tmp_path / "scores.parquet")["value"].isna().all()
