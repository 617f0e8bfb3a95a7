"""Rounding as a lattice problem: with H = X^T X of the inputs and D = W - Q, the squared error of the outputs is trace(D H D^T) = |D M|^2 for any factor
H = M M^T. `feedback` rounds input after input and lets each later one make good what the earlier ones lost; `descend` then changes one code, or one
scale, at a time wherever the error falls.

Arrays of weights are transposed, [k, rows]; rows are independent of each other.
"""

from __future__ import annotations

import numpy as np

from ... import _native
from ...calibration.extra import check_extra
from ._grid import Grid

REFITS = 2  # passes that also improve scales: later ones move few values


def factor(gram: np.ndarray, order: np.ndarray, damping: float) -> tuple[np.ndarray, float]:
    """(M, damping used): upper triangular float32 [k, k] with M M^T = gram, rows and columns in this order, + damping * its mean diagonal. Where that is
    not positive definite in float32 the damping grows until it is.

    Reversing the order of rows and columns makes the lower factor of LAPACK the upper one, so that no inverse is needed.
    """
    check_extra()
    from scipy.linalg import lapack

    k = len(gram)
    mean = float(np.trace(gram, dtype=np.float64)) / k
    while True:
        work = np.array(gram[np.ix_(order[::-1], order[::-1])], np.float32, order="F")
        work[np.diag_indices(k)] += np.float32(damping * mean)
        found, info = lapack.spotrf(work, lower=1, clean=1, overwrite_a=1)
        if info == 0 and np.isfinite(found[-1, -1]):
            return np.ascontiguousarray(found[::-1, ::-1]), damping
        damping = max(10 * damping, 1e-4)


def shares_of(m: np.ndarray) -> np.ndarray:
    """float32 [k, k], lower triangular: what each input makes good of the loss of each before it, from `factor`."""
    return np.ascontiguousarray((m / np.diagonal(m)).T)


def feedback(weight: np.ndarray, shares: np.ndarray, grid: Grid, order: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """The values (in units of their scales) of `weight` [k, rows], rounded in the order of its inputs (arXiv 2210.17323; the form without an inverse is
    Babai's nearest plane, arXiv 2507.18553). Row i of `weight`, and of `shares`, is input order[i] of the tensor, in group group_of[i]."""
    values = np.empty_like(weight)
    _round(shares, np.ones(len(weight), np.float32), np.zeros_like(weight), weight.copy(), values, grid, group_of, order, triangular=True)
    return values


def descend(weight: np.ndarray, values: np.ndarray, gram: np.ndarray, grid: Grid, passes: int) -> None:
    """Improves `values` and the grid's scales in place: group after group the scale with the least error for its values, then each value the best one
    for all others as they are. The error never grows."""
    places = np.arange(len(weight))
    inverse_diagonal, group_of, now = 1 / np.diagonal(gram), np.zeros(len(weight), np.int32), np.empty_like(weight)
    for g, columns in enumerate(grid.groups):
        np.multiply(values[columns], grid.size(g), out=now[columns])
        group_of[columns] = g
    gradient = gram @ (weight - now)
    for done in range(passes):
        if _round(gram, inverse_diagonal, gradient, now, values, grid, group_of, places, refit=grid.free and done < REFITS) == 0:
            break


def _round(matrix: np.ndarray, alpha: np.ndarray, pull: np.ndarray, start: np.ndarray, values: np.ndarray, grid: Grid, group_of: np.ndarray, places: np.ndarray,
           *, triangular: bool = False, refit: bool = False) -> int:
    """See Lattice in csrc/lattice.h, which has the arguments; `start` is its `from`."""
    return _native.round_lattice(matrix, alpha, triangular, group_of.astype(np.int32), places.astype(np.int32), refit, pull, start, values, *grid.native())
