"""Percentiles of what was measured, and what they would be had a closed loop not waited (coordinated omission)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHARES = (0.50, 0.90, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class Spread:
    """How values lie, in their own unit. NaN of no values. Percentiles interpolate between neighbours (numpy's default, as other clients do)."""

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p98: float
    p99: float
    max: float

    def to_json(self) -> dict[str, float | int | None]:
        return {name: (None if value != value else value) for name, value in vars(self).items()}


def spread(values: np.ndarray) -> Spread:
    """Of the values [n] that are numbers."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        nan = float("nan")
        return Spread(0, nan, nan, nan, nan, nan, nan, nan, nan)
    p50, p90, p95, p98, p99 = (float(v) for v in np.quantile(values, SHARES))
    return Spread(len(values), float(values.mean()), float(values.min()), p50, p90, p95, p98, p99, float(values.max()))


def corrected(latencies: np.ndarray, interval: float) -> np.ndarray:
    """Latencies [n] of a closed loop with those added that its users could not see because they waited.

    A user who asks every `interval` seconds and once waits L would have sent further requests meanwhile, which would have waited L - interval, L - 2 interval
    and so on. As HdrHistogram's recordValueWithExpectedInterval does it: latencies below two intervals add nothing, so ordinary variation changes nothing.
    """
    latencies = np.asarray(latencies, np.float64)
    if not interval > 0:
        return latencies
    added = [latencies]
    for latency in latencies[latencies >= 2 * interval]:
        steps = int(min(latency // interval - 1, 100_000))
        added.append(latency - interval * np.arange(1, steps + 1))
    return np.concatenate(added)
