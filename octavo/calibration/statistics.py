"""What is known of the inputs of a linear after all calibration rows have passed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..qtensor import rotate
from . import products


@dataclass
class Statistics:
    """Of x [rows, k]: mean, mean of |x|, mean of x^2, largest |x|, smallest and largest x, each float32 [k].

    Without moments all but the mean of x^2 are empty. It, and the gram, may be means in which tokens count differently (`of_rows`).

    gram   float32 [k, k]: X^T X / rows, symmetric; None where it was not asked for. With W [n, k] and an error D = W - Q of its rounding,
           the mean squared error of the outputs is trace(D gram D^T): what GPTQ (arXiv 2210.17323) and its relatives minimise.
    """

    rows: int
    mean: np.ndarray
    mean_abs: np.ndarray
    mean_square: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gram: np.ndarray | None = None

    @property
    def largest(self) -> np.ndarray:
        """The largest |x| of each channel, float32 [k]."""
        return np.maximum(self.high, -self.low)

    def output_error(self, difference: np.ndarray) -> float:
        """Mean squared error of the outputs, summed over them, for weights that differ by `difference` [n, k]; needs `gram`."""
        assert self.gram is not None
        return float(np.einsum("nk,nk->", difference @ self.gram, difference, dtype=np.float64))

    def scaled(self, factors: np.ndarray) -> Statistics:
        """Of x / factors [k] instead of x; factors are above 0."""
        inverse = (1 / factors).astype(np.float32)
        gram = None if self.gram is None else self.gram * inverse[:, None] * inverse[None, :]
        return Statistics(self.rows, self.mean * inverse, self.mean_abs * inverse, self.mean_square * inverse**2, self.low * inverse, self.high * inverse, gram)

    def rotated(self, block: int) -> Statistics:
        """Of the inputs rotated in blocks of `block` (qtensor.rotate), without moments but the mean square; needs `gram`."""
        assert self.gram is not None
        gram = np.ascontiguousarray(rotate(rotate(self.gram, block).T, block))
        none = np.empty(0)
        return Statistics(self.rows, none, none, np.diagonal(gram).copy(), none, none, gram)


def of_rows(x: np.ndarray, gram: bool, moments: bool = True, counts: np.ndarray | None = None) -> Statistics:
    """Sums, not means, of one chunk: to be added by `combine` in a fixed order. moments: see Statistics; counts [rows]: what the squares of each row count,
    1 on average over all chunks, see tokens.py; None: 1."""
    factors = None if counts is None else np.sqrt(counts)
    square = products.gram(x, factors) if gram else None
    if square is not None:
        squares = np.diagonal(square).astype(np.float64)
    else:
        counted = x if factors is None else x * factors[:, None]
        squares = np.einsum("rk,rk->k", counted, counted).astype(np.float64)
    if not moments:
        none = np.empty(0)
        return Statistics(len(x), none, none, squares, none, none, square)
    return Statistics(len(x), x.sum(axis=0, dtype=np.float64), np.abs(x).sum(axis=0, dtype=np.float64), squares, x.min(axis=0), x.max(axis=0), square)


def of_squares(mean_square: np.ndarray) -> Statistics:
    """Where that [k] is all that is known, and the number of rows is not."""
    none = np.empty(0)
    return Statistics(0, none, none, mean_square, none, none)


def combine(total: Statistics | None, part: Statistics) -> Statistics:
    """The sums of both; `total` is changed in place."""
    if total is None:
        return part
    total.rows += part.rows
    total.mean += part.mean
    total.mean_abs += part.mean_abs
    total.mean_square += part.mean_square
    np.minimum(total.low, part.low, out=total.low)
    np.maximum(total.high, part.high, out=total.high)
    if total.gram is not None and part.gram is not None:
        total.gram += part.gram
    return total


def means(total: Statistics) -> Statistics:
    """Means of sums."""
    rows = total.rows
    gram = None if total.gram is None else total.gram / np.float32(rows)
    return Statistics(rows, (total.mean / rows).astype(np.float32), (total.mean_abs / rows).astype(np.float32),
                      (total.mean_square / rows).astype(np.float32), total.low, total.high, gram)
