"""How sure a number from a text is: tokens of one passage are not independent, so whole passages are drawn again (block bootstrap).

A passage is a document where the text has enough of them, else a window of the evaluation (see `Windows.blocks`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and the interval that holds its true value with 95%; (nan, nan) where nothing can be said."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """{"value", "low", "high"}; null for what is not finite, which JSON cannot say."""
        return {name: finite(number) for name, number in vars(self).items()}

    @property
    def exp(self) -> Estimate:
        """e to the power of each: a perplexity from a mean loss, a ratio from a mean difference."""
        with np.errstate(over="ignore"):
            return Estimate(float(np.exp(self.value)), float(np.exp(self.low)), float(np.exp(self.high)))


def finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def block_bootstrap(values: np.ndarray, block: int | np.ndarray, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The interval that holds the mean of `values` [n] with probability `level`.

    `block` is the number of values in a block (the last may have fewer), or a label for each value [n]: equal labels in a row are one block.
    Draws as many blocks as there are with replacement, takes the mean of all their values, `draws` times, and returns the percentiles
    (Kunsch 1989, with disjoint blocks as in Carlstein 1986). To compare two models on one text, pass the differences per token:
    what is hard about the text cancels out. With fewer than two blocks, or with values that are not finite, nothing can be said: (nan, nan).
    """
    starts = block_starts(block, len(values))
    if len(starts) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    sums = np.add.reduceat(values.astype(np.float64), starts)
    counts = np.diff(np.append(starts, len(values))).astype(np.float64)
    means = np.empty(draws)
    generator = np.random.default_rng(seed)
    for part in np.array_split(np.arange(draws), max(1, draws * len(starts) // 4_000_000)):  # 32 MB of indices at a time
        drawn = generator.integers(0, len(starts), size=(len(part), len(starts)))
        means[part] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def quantile_bootstrap(values: np.ndarray, block: int | np.ndarray, quantile: float, *, level: float = LEVEL, draws: int = 200,
                       seed: int = 0) -> tuple[float, float]:
    """The interval of a quantile of `values` [n], from blocks as in `block_bootstrap`. (Of a maximum, drawing again can say nothing.)"""
    starts = block_starts(block, len(values))
    if len(starts) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    sizes = np.diff(np.append(starts, len(values)))
    order = np.argsort(values, kind="stable")
    owner = np.repeat(np.arange(len(starts)), sizes)[order]
    generator = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
        times = np.bincount(generator.integers(0, len(starts), len(starts)), minlength=len(starts))
        below = np.cumsum(times[owner])  # how many drawn values are at most this one
        found[draw] = values[order[np.searchsorted(below, quantile * below[-1])]]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def block_starts(block: int | np.ndarray, count: int) -> np.ndarray:
    """Index of the first value of each block."""
    if isinstance(block, np.ndarray):
        return np.flatnonzero(np.concatenate([[True], block[1:] != block[:-1]]))[: count or None]
    return np.arange(0, count, block)


def estimate(values: np.ndarray, block: int | np.ndarray) -> Estimate:
    """Mean and interval."""
    return Estimate(float(values.mean()), *block_bootstrap(values, block))
