"""Intervals of what is counted: shares of right answers, their paired differences, and quantiles (the value that a share of the others is below).

A share has an interval of its own form (Clopper and Pearson 1934, which holds the truth with 95% at least): four right answers of four are 100%, but
[40%, 100%], where a bootstrap could draw nothing but right ones. Tokens of one passage are not independent, so they count as fewer: as many as would give
a mean of the spread that the passages show, and fewer again where there are few passages to judge that by (Korn and Graubard 1998).
"""

from __future__ import annotations

import math

import numpy as np

from .distributions import beta, student
from .intervals import LEVEL, NORMAL, Estimate, block_starts


def share(right: np.ndarray, block: int | np.ndarray) -> Estimate:
    """Share of ones in `right` [n], each 0.0 or 1.0, with its interval; `block` as in `mean_interval`. (nan, nan) for a single block of several."""
    value = float(right.mean())
    count = _effective(right, value * (1 - value), block)
    return Estimate(value, *(binomial(value, count) if count else (math.nan, math.nan)))


def share_difference(change: np.ndarray, block: int | np.ndarray) -> Estimate:
    """Mean of `change` [n]: 1.0 where an answer became right, -1.0 where it became wrong, 0.0 where it stayed. Source of the interval: Bonett and Price
    2012 (adjusted Wald for paired proportions), in which no change in n answers does not prove that there is none."""
    value, gained, lost = float(change.mean()), float((change > 0).mean()), float((change < 0).mean())
    count = _effective(change, gained + lost - value**2, block)
    if not count:
        return Estimate(value, math.nan, math.nan)
    more, less = ((part * count + 1) / (count + 2) for part in (gained, lost))
    reach = NORMAL * math.sqrt((more + less - (more - less) ** 2) / (count + 2))
    return Estimate(value, max(more - less - reach, -1.0), min(more - less + reach, 1.0))


def quantile_interval(values: np.ndarray, block: int | np.ndarray, quantile: float) -> tuple[float, float]:
    """The interval of a quantile of `values` [n]: the values that a share at either end of the quantile's own interval lies below (Woodruff 1952).

    Where the sample is so small that even its largest (smallest) value lies beyond the quantile too rarely, that end is NaN.
    """
    if not np.isfinite(values).all():
        return math.nan, math.nan
    ordered = np.sort(values)
    if ordered[0] == ordered[-1]:
        return float(ordered[0]), float(ordered[0])
    n = len(ordered)
    below = (values <= ordered[min(math.ceil(quantile * n), n) - 1]).astype(np.float64)
    part = float(below.mean())
    count = _effective(below, part * (1 - part), block)
    if not count:
        return math.nan, math.nan
    least, most = binomial(quantile, count)
    low = float(ordered[max(math.floor(least * n) - 1, 0)]) if (1 - quantile) ** count <= (1 - LEVEL) / 2 else math.nan
    high = float(ordered[min(math.ceil(most * n), n - 1)]) if quantile**count <= (1 - LEVEL) / 2 else math.nan
    return low, high


def binomial(value: float, count: float) -> tuple[float, float]:
    """The interval of a share of `count` independent answers (which may be a fraction): no share outside of it would give so few, or so many, right ones
    with more than half of what LEVEL leaves (Clopper and Pearson 1934)."""
    right, tail = value * count, (1 - LEVEL) / 2
    return (beta(tail, right, count - right + 1) if right > 0 else 0.0), (beta(1 - tail, right + 1, count - right) if right < count else 1.0)


def _effective(values: np.ndarray, spread: float, block: int | np.ndarray) -> float:
    """How many independent values say as much as these, whose variance is `spread`; 0 where nothing can be said."""
    n, starts = len(values), block_starts(block, len(values))
    blocks = len(starts)
    if blocks == n:
        return float(n)
    if blocks < 2:
        return 0.0
    counts = np.diff(np.append(starts, n))
    apart = np.add.reduceat(values, starts) - float(values.mean()) * counts
    variance = blocks / (blocks - 1) * float(apart @ apart) / n**2
    alone = spread / n
    return n * min(1.0, alone / variance if variance > 0 else 1.0) * (NORMAL / student((1 + LEVEL) / 2, blocks - 1)) ** 2
