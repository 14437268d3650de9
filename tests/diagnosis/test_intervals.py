import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from ragbench.diagnosis.intervals import rate_difference, rate_interval, slope

counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("events", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_rate_agrees_with_newcombes_table_of_1998(events, n, low, high):
    assert rate_interval(events, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
    ],
)
def test_the_interval_of_a_difference_agrees_with_newcombes_table_of_1998(one, other, low, high):
    assert rate_difference(*one, *other)[1:] == pytest.approx((low, high), abs=5e-5)


def test_a_rate_of_no_questions_may_be_anything():
    assert rate_interval(0, 0) == (0.0, 1.0)


@given(counts, st.sampled_from([0.8, 0.95, 0.999]))
def test_the_interval_of_a_rate_holds_the_rate_and_stays_between_0_and_1(count, confidence):
    events, n = count
    low, high = rate_interval(events, n, confidence)
    assert 0 <= low <= events / n + 1e-12 and events / n - 1e-12 <= high <= 1
    assert high - low > 0


@given(st.integers(1, 500))
def test_none_or_all_of_the_questions_still_leave_room_for_doubt(n):
    low, high = rate_interval(0, n)
    assert low == 0 and 0 < high < 1
    assert rate_interval(n, n) == pytest.approx((1 - high, 1))


@given(counts)
def test_the_interval_of_a_rate_mirrors_that_of_its_complement(count):
    events, n = count
    low, high = rate_interval(events, n)
    assert rate_interval(n - events, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(counts, st.integers(2, 20))
def test_more_questions_and_less_confidence_make_the_interval_narrower(count, times):
    events, n = count

    def width(*arguments):
        low, high = rate_interval(*arguments)
        return high - low

    assert width(times * events, times * n) < width(events, n)
    assert width(events, n, 0.8) < width(events, n) < width(events, n, 0.99)


@given(counts)
def test_one_more_event_never_lowers_the_interval(count):
    events, n = count
    assume(events < n)
    lower, higher = rate_interval(events, n), rate_interval(events + 1, n)
    assert lower[0] < higher[0] and lower[1] < higher[1]


@given(counts, counts)
def test_the_interval_of_a_difference_holds_it_and_stays_between_minus_1_and_1(one, other):
    difference, low, high = rate_difference(*one, *other)
    assert difference == pytest.approx(one[0] / one[1] - other[0] / other[1])
    assert -1 - 1e-9 <= low <= difference <= high <= 1 + 1e-9


@given(counts, counts)
def test_the_difference_the_other_way_round_is_its_negative(one, other):
    difference, low, high = rate_difference(*one, *other)
    assert rate_difference(*other, *one) == pytest.approx((-difference, -high, -low), abs=1e-9)


@given(counts)
def test_a_difference_between_equal_groups_is_not_told_from_nothing(count):
    difference, low, high = rate_difference(*count, *count)
    assert difference == 0 and low < 0 < high


@pytest.mark.parametrize(("n", "other_n"), [(10, 20), (15, 60)])
def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says(n, other_n):
    bounds = np.array([[rate_difference(a, n, b, other_n)[1:] for b in range(other_n + 1)] for a in range(n + 1)])
    coverage = []
    for rate in (0.05, 0.3, 0.7, 0.95):
        for other in (0.05, 0.3, 0.7, 0.95):
            weights = np.outer(binom.pmf(range(n + 1), n, rate), binom.pmf(range(other_n + 1), other_n, other))
            inside = (bounds[..., 0] <= rate - other) & (rate - other <= bounds[..., 1])
            coverage.append(float((weights * inside).sum()))
    assert 0.94 <= np.mean(coverage) <= 0.98
    assert min(coverage) >= 0.9


@pytest.mark.parametrize("n", [10, 40])
def test_the_interval_of_a_rate_covers_the_truth_as_often_as_it_says_even_near_0(n):
    bounds = np.array([rate_interval(events, n) for events in range(n + 1)])
    coverage = [
        float((binom.pmf(range(n + 1), n, rate) * ((bounds[:, 0] <= rate) & (rate <= bounds[:, 1]))).sum())
        for rate in np.linspace(0.01, 0.99, 99)
    ]
    assert 0.945 <= np.mean(coverage) <= 0.97 and min(coverage) >= 0.9


def test_a_slope_and_its_interval_are_those_of_the_textbook():
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 5])
    rate = 8 / 10  # sum of products over sum of squares of x
    residual = y - (y.mean() + rate * (x - x.mean()))
    reach = 3.182446 * math.sqrt(float(residual @ residual) / 3 / 10)  # t of 3 degrees of freedom
    assert slope(x, y) == pytest.approx((rate, rate - reach, rate + reach), abs=1e-5)


lines = st.integers(3, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 100), min_size=n, max_size=n), st.lists(st.integers(0, 100), min_size=n, max_size=n)
    )
)


@settings(deadline=None)
@given(lines)
def test_a_slope_changes_its_sign_with_the_direction_of_either_axis(line):
    x, y = (np.array(values) / 100 for values in line)
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    rate, low, high = slope(x, y)
    assert low <= rate <= high
    assert slope(-x, y) == pytest.approx((-rate, -high, -low), abs=1e-6)
    assert slope(x, 1 - y) == pytest.approx((-rate, -high, -low), abs=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.1, 0.9, 1.0])
def test_a_flat_line_has_the_slope_0_within_an_interval_of_numbers(level):
    rate, low, high = slope(np.arange(10.0), np.full(10, level))
    assert rate == pytest.approx(0)
    assert low <= 0 <= high


def test_about_95_of_100_intervals_of_a_slope_cover_it():
    random = np.random.default_rng(5)
    x = np.linspace(0, 1, 20)
    intervals = [slope(x, 0.4 * x + random.normal(0, 0.3, 20)) for _ in range(400)]
    assert 365 <= sum(low <= 0.4 <= high for _, low, high in intervals) <= 395
