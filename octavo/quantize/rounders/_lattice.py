"""Rounding as a lattice problem: with H = X^T X of the inputs and D = W - Q, the squared error of the outputs is trace(D H D^T) = |D M|^2 for any factor
H = M M^T. `feedback` rounds input after input and lets each later one make good what the earlier ones lost; `descend` then changes scales, and one
code at a time, wherever the error falls.

Arrays of weights are transposed, [k, rows]; rows are independent of each other.
"""

from __future__ import annotations

import numpy as np

from ... import _native
from ...calibration.extra import check_extra
from ._grid import Grid

REFIT_BITS = 5                  # up to which scales are improved, too: with more levels the search leaves nothing to gain
WORTHWHILE = np.float32(1e-3)   # a new scale moves values by so many squared steps on average, or stays: rounding itself loses 1/12


def factor(gram: np.ndarray, order: np.ndarray, damping: float) -> tuple[np.ndarray, float]:
    """(M, damping used): upper triangular float32 [k, k] with M M^T = gram, rows and columns in this order, + damping * its mean diagonal. Where that is
    not positive definite in float32 the damping grows until it is.

    Reversing the order of rows and columns makes the lower factor of LAPACK the upper one, so that no inverse is needed.
    """
    check_extra()
    from scipy.linalg import lapack

    k = len(gram)
    mean = float(np.trace(gram, dtype=np.float64)) / k
    back = order[::-1]
    while True:
        work = np.take(gram[back], back, axis=1).T  # symmetric: so the columns that LAPACK wants lie as they are
        work[np.diag_indices(k)] += np.float32(damping * mean)
        found, info = lapack.spotrf(work, lower=1, clean=1, overwrite_a=1)
        if info == 0 and np.isfinite(found[-1, -1]):
            return found[::-1, ::-1], damping
        damping = max(10 * damping, 1e-4)


def shares_of(m: np.ndarray) -> np.ndarray:
    """float32 [k, k], lower triangular: what each input makes good of the loss of each before it, from `factor`."""
    return np.divide(m.T, np.diagonal(m)[:, None], order="C")


def feedback(weight: np.ndarray, shares: np.ndarray, grid: Grid, order: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """The values (in units of their scales) of `weight` [k, rows], rounded in the order of its inputs (arXiv 2210.17323; the form without an inverse is
    Babai's nearest plane, arXiv 2507.18553). Row i of `weight`, and of `shares`, is input order[i] of the tensor, in group group_of[i]."""
    values = np.empty_like(weight)
    _native.round_lattice(shares, group_of.astype(np.int32), order.astype(np.int32), weight, values, *grid.native())
    return values


def descend(weight: np.ndarray, values: np.ndarray, gram: np.ndarray, grid: Grid, passes: int) -> np.ndarray:
    """Better values, and better scales in the grid: group after group the scale with the least error for its values, then pass after pass each value the best
    one for all others as they are. The error never grows."""
    lost = np.empty_like(weight)
    for g, columns in enumerate(grid.groups):
        np.multiply(values[columns], grid.size(g), out=lost[columns])
    np.subtract(weight, lost, out=lost)
    gradient = lost.T @ gram  # from here on [rows, k]: what changes in a row is passed on along it
    values, inverse_diagonal = np.ascontiguousarray(values.T), 1 / np.diagonal(gram)
    if grid.free and grid.spec.bits <= REFIT_BITS:
        _refit(values, gradient, gram, grid)
    native = grid.native()
    for _ in range(passes):
        if _native.descend_lattice(gram, inverse_diagonal, grid.starts, gradient, values, *native) == 0:
            break
    return values.T


def _refit(values: np.ndarray, gradient: np.ndarray, gram: np.ndarray, grid: Grid) -> None:
    """The best scale of each group for its `values` [rows, k], where the stored one is further from it; `gradient` goes along."""
    for g, columns in enumerate(grid.groups):
        mine, scale, size = values[:, columns], grid.scales[g], grid.size(g)
        curved = np.einsum("rk,rk->r", mine @ gram[columns, columns], mine)
        step = np.einsum("rk,rk->r", mine, gradient[:, columns]) / np.where(curved > 0, curved, np.float32(np.inf))
        tried = grid.stored(scale + step / grid.outer)
        moves = (tried - scale) * grid.outer
        worth = np.square(moves / size) * np.einsum("rk,rk->r", mine, mine) >= WORTHWHILE * mine.shape[1]
        rows = np.flatnonzero(worth & (tried != 0) & (np.abs(moves - step) < np.abs(step)))
        scale[rows] = tried[rows]
        gradient[rows] += (mine[rows] * (size - grid.size(g))[rows, None]) @ gram[columns]
