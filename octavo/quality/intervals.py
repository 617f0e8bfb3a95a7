"""How sure a number from a text is: tokens of one passage are not independent, so it is passages that count, and how much they differ.

A passage is a document where the text has enough of them, else a window of the evaluation (see `Windows.blocks`). From ENOUGH passages on the interval is
a studentized block bootstrap (blocks: Kunsch 1989, disjoint as in Carlstein 1986; studentized: Hall 1988): passages are drawn again, and each draw's mean is
measured in its own standard errors, which corrects for few passages and for skewed ones. Below, draws are too few to say anything beyond their spread, and
Student's t takes their place. Plain percentiles of the draws, the common way, are far too narrow then (Hesterberg 2015, arXiv:1411.5279): of intervals
called 95%, half hold the true mean with two blocks, 78% with four, 86% with eight. tests/quality/test_coverage.py counts ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .distributions import student

DRAWS, LEAST_DRAWS = 2000, 400
DRAWN = 4_000_000  # blocks in all draws: of very many blocks, fewer draws do
LEVEL = 0.95
NORMAL = 1.959964  # standard deviations of the normal distribution that hold LEVEL
ENOUGH = 8  # blocks to draw from


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


def mean_interval(values: np.ndarray, block: int | np.ndarray, *, positive: bool = False, level: float = LEVEL, draws: int = DRAWS,
                  seed: int = 0) -> tuple[float, float]:
    """The interval that holds the mean of `values` [n] with probability `level`.

    `block` is the number of values in a block (the last may have fewer), or a label for each value [n]: equal labels in a row are one block.
    positive: values are at least 0 (losses, divergences), so the interval is taken of the mean's logarithm, which is less skewed.
    To compare two models on one text, pass the differences per token: what is hard about the text cancels out. Where all values are equal, so are
    both ends. With fewer than two blocks, or with values that are not finite, nothing can be said: (nan, nan).
    """
    starts = block_starts(block, len(values))
    if len(starts) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    if values.min() == values.max():
        return float(values[0]), float(values[0])
    sums = np.add.reduceat(values.astype(np.float64), starts)
    counts = np.diff(np.append(starts, len(values))).astype(np.float64)
    mean = float(sums.sum() / counts.sum())
    apart = sums - mean * counts
    error = float(_error(apart, counts))
    if error <= abs(mean) * 1e-12:
        return mean, mean
    positive = positive and bool((sums > 0).all())
    least, most = _studentized(apart, counts, mean if positive else None, level, draws, seed)
    if not positive:
        return mean - most * error, mean - least * error
    with np.errstate(over="ignore"):
        return float(mean * np.exp(-most * error / mean)), float(mean * np.exp(-least * error / mean))


def _studentized(apart: np.ndarray, counts: np.ndarray, mean: float | None, level: float, draws: int, seed: int) -> tuple[float, float]:
    """Between which values (mean of a sample - true mean) / its standard error lies with probability `level`; with `mean`, of the logarithms.

    apart   of each block: its sum, less what the mean gives so many values
    """
    blocks = len(apart)
    if blocks < ENOUGH:
        reach = student((1 + level) / 2, blocks - 1)
        return -reach, reach
    draws = min(draws, max(DRAWN // blocks, LEAST_DRAWS))
    found = np.empty(draws)
    generator = np.random.default_rng(seed)
    equal = bool((counts == counts[0]).all())
    for part in np.array_split(np.arange(draws), max(1, draws * blocks // 65_536)):  # what a core's own cache holds
        drawn = generator.integers(0, blocks, size=(len(part), blocks), dtype=np.int32)
        sums, sizes = apart[drawn], counts if equal else counts[drawn]
        shift = sums.sum(axis=1) / sizes.sum(axis=-1)
        error = _error(sums - shift[:, None] * sizes, sizes)
        with np.errstate(divide="ignore", invalid="ignore"):
            found[part] = shift / error if mean is None else np.log1p(shift / mean) * (mean + shift) / error
    low, high = np.quantile(np.nan_to_num(found), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _error(apart: np.ndarray, counts: np.ndarray) -> Any:
    """The standard error of a mean from what blocks [..., blocks] are apart from it (of a ratio: Cochran, Sampling Techniques, section 6.4)."""
    blocks = counts.shape[-1]
    return np.sqrt(blocks / (blocks - 1) * np.einsum("...b,...b->...", apart, apart)) / counts.sum(axis=-1)


def block_starts(block: int | np.ndarray, count: int) -> np.ndarray:
    """Index of the first value of each block."""
    if isinstance(block, np.ndarray):
        return np.flatnonzero(np.concatenate([[True], block[1:] != block[:-1]]))[: count or None]
    return np.arange(0, count, block)


def estimate(values: np.ndarray, block: int | np.ndarray, *, positive: bool = False) -> Estimate:
    """Mean and interval; see `mean_interval`."""
    return Estimate(float(values.mean()), *mean_interval(values, block, positive=positive))
