"""How sure a gain is: the trimmed mean of paired log-ratios with its confidence interval.

A pair is the default and a candidate timed next to each other, so what disturbs both cancels out; what disturbs one of them (a neighbour on the
machine, an interrupt) is an outlier, which trimming takes out. log(t_default / t_candidate) > 0: the candidate is faster. Source of the
interval: Tukey and McLaughlin 1963 (Sankhya A 25), a quarter trimmed at either end, winsorized variance, Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..quality.distributions import student, student_below

TRIM = 0.25  # of the values at either end: one measurement in five is disturbed on a busy machine
LEAST = 5   # pairs below which nothing can be said


@dataclass(frozen=True)
class Interval:
    """A mean log-ratio and the interval that holds it, from `pairs` pairs. Infinite where there are too few. chance: the probability of a mean this
    high where there is no gain."""

    mean: float
    low: float
    high: float
    pairs: int
    chance: float = 1.0

    @property
    def gain(self) -> float:
        """As a fraction of speed: 0.1 is a tenth faster."""
        return math.expm1(self.mean)

    @property
    def furthest(self) -> float:
        """The end of the interval that lies further from 0, without its sign."""
        return max(abs(self.low), abs(self.high))


def interval(ratios: Sequence[float], level: float = 0.95) -> Interval:
    """The two-sided interval of this level for the mean of `ratios` (log-ratios of pairs)."""
    n = len(ratios)
    if n < LEAST:
        return Interval(sum(ratios) / n if n else 0.0, -math.inf, math.inf, n)
    cut = int(TRIM * n)
    ordered = sorted(ratios)
    kept = ordered[cut : n - cut]
    mean = sum(kept) / len(kept)
    pulled = [kept[0]] * cut + kept + [kept[-1]] * cut
    centre = sum(pulled) / n
    variance = sum((v - centre) ** 2 for v in pulled) / (n - 1)
    error = math.sqrt(variance / n) * n / len(kept)
    reach = student(1 - (1 - level) / 2, len(kept) - 1) * error
    freedom = len(kept) - 1
    below = student_below(abs(mean) / error, freedom) if error > 0 else 1.0
    return Interval(mean, mean - reach, mean + reach, n, 1 - below if mean > 0 else below)


def discoveries(chances: Sequence[float], false: float = 0.05) -> list[bool]:
    """Which of several gains count, so that of those that do at most a fraction `false` is expected to be chance; where none is real, any counts
    with that probability (Benjamini and Hochberg 1995)."""
    ordered = sorted(chances)
    limit = max((p for rank, p in enumerate(ordered, 1) if p <= false * rank / len(ordered)), default=-1.0)
    return [p <= limit for p in chances]
