"""Intervals of rates and of differences between rates, which hold for rates near 0 and 1 and for few questions."""

import math

import numpy as np
from scipy.stats import binomtest, linregress, t


def rate_interval(events: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a rate (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(events, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def rate_difference(
    events: int, n: int, other_events: int, other_n: int, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the difference of two independent rates with Newcombe's interval (1998, method 10); both n at least 1."""
    rate, other = events / n, other_events / other_n
    low, high = rate_interval(events, n, confidence)
    other_low, other_high = rate_interval(other_events, other_n, confidence)
    difference = rate - other
    return (
        difference,
        difference - math.hypot(rate - low, other_high - other),
        difference + math.hypot(high - rate, other - other_low),
    )


def slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Return the slope of the least-squares line of `y` over `x` with its 95 % interval; at least 3 points."""
    if np.ptp(y) == 0:
        return 0.0, 0.0, 0.0
    line = linregress(x, y)
    reach = float(t.ppf(0.975, len(x) - 2)) * float(line.stderr)
    return float(line.slope), float(line.slope) - reach, float(line.slope) + reach
