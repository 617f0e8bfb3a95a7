"""Ratios to the original, judged by their intervals: two runs of one server on a shared machine differ, too.

A ratio fails when its whole interval lies beyond the limit. It is kept when the interval does not, and is narrow enough to say anything: one that reaches
from half to double would hold for a model that is twice as slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..traffic import Difference

WIDEST = 2.0  # an interval's end over its beginning


@dataclass(frozen=True)
class Ratio:
    """kept   None: no limit, or nothing can be said
    said   the ratio and what it means, for the evidence
    limit   as the list shows it; empty without one
    low, high   of the ratio, with 99% for all together; NaN where the interval says nothing
    """

    kept: bool | None
    said: str
    limit: str
    low: float
    high: float


def ratio(one: Difference, limit: float | None, most: bool) -> Ratio:
    """`one` against `limit`, which is the most that it may be, or else the least."""
    sign = "≤" if most else "≥"
    shown = "" if limit is None else f"{sign} {limit:g} x"
    unjudged = shown and f"({shown} not judged)"
    if not math.isfinite(one.low) or not math.isfinite(one.high):
        return Ratio(None, "too few requests to judge the ratio to the original: a longer --duration gives more", unjudged, math.nan, math.nan)
    within, beyond = (one.high <= limit, one.low > limit) if limit is not None and most else (
        (one.low >= limit, one.high < limit) if limit is not None else (False, False))
    if not within and not beyond and one.high > WIDEST * one.low:
        return Ratio(None, f"the runs differ too much to judge the ratio to the original ({one.ratio:.3g} times, {one.low:.2g} to {one.high:.2g} with 99%): "
                     "a longer --duration or a quieter machine tells more", unjudged, math.nan, math.nan)
    said = f"{one.ratio:.3f} times the original's ({one.low:.3f} to {one.high:.3f} with 99%)"
    if limit is not None and not within:
        said += f", surely beyond {limit:g}" if beyond else f", not surely beyond {limit:g}"
    return Ratio(None if limit is None else not beyond, said, shown, one.low, one.high)


def turned(one: Difference) -> Difference:
    """Of the inverse: time for a token instead of tokens in a time."""
    low, high = (1 / end if end > 0 else math.nan for end in (one.high, one.low))
    return Difference(one.name, one.a, one.b, 1 / one.ratio if one.ratio > 0 else math.nan, low, high, one.verdict)
