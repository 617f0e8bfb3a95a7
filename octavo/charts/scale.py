"""Scale: numbers -> places on paper, and the round numbers to write beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """`low` to `high` of the data lie at `start` to `stop` of the paper; logarithmic where `log`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round numbers within the scale, about five of them."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1,) if last - first > 3 else (1, 2, 5)
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        else:
            rough = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
            found = [step * i for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        return [v for v in found if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9) or (v == 0 and self.low == 0)]


def fit(values: Iterable[float], start: float, stop: float, *, log: bool = False, zero: bool = False) -> Scale:
    """A scale that holds all finite values; from 0 on with `zero`."""
    good = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    low, high = (min(good), max(good)) if good else (0.0, 1.0)
    if log:
        low = max(low, high / 1e6) or 1.0
        high = max(high, low * 1.01)
        return Scale(low, high, start, stop, True)
    if zero:
        low = min(low, 0.0)
    if high <= low:
        high = low + (abs(low) or 1.0)
    return Scale(low, high + (high - low) * 0.04, start, stop)


def short(value: float) -> str:
    """A tick's number."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.10g}" if abs(value) >= 1000 else f"{value:.4g}"
