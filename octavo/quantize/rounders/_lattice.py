"""Rounding as a lattice problem: with H = X^T X of the inputs and D = W - Q, the squared error of the outputs is trace(D H D^T) = |D M|^2 for any factor
H = M M^T. `feedback` rounds input after input and lets each later one make good what the earlier ones lost; `descend` then changes one code, or one
scale, at a time wherever the error falls.

Arrays of weights are transposed, [k, rows]; rows are independent of each other.
"""

from __future__ import annotations

import numpy as np

from ...calibration.extra import check_extra
from ._grid import Grid

STEP = 64  # inputs rounded before what they lost is passed on by a matrix product


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


def feedback(weight: np.ndarray, m: np.ndarray, grid: Grid, order: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """The values (in units of their scales) of `weight` [k, rows], rounded in the order of its inputs (arXiv 2210.17323; the form without an inverse is
    Babai's nearest plane, arXiv 2507.18553). Row i of `weight`, and of `m`, is input order[i] of the tensor, in group group_of[i]."""
    k, rows = weight.shape
    diagonal = np.diagonal(m).copy()
    values = np.empty((k, rows), np.float32)
    lost = np.empty((k, rows), np.float32)
    sizes = [grid.size(g) for g in range(len(grid.groups))]
    inverses = [1 / s for s in sizes]
    bounds = [grid.bounds(g) for g in range(len(grid.groups))]
    for a in range(0, k, STEP):
        b = min(a + STEP, k)
        share = m[:b, a:b] / diagonal[a:b]
        targets = weight[a:b].copy()
        if a:
            targets += share[:a].T @ lost[:a]
        inner = np.ascontiguousarray(share[a:b].T)
        for i in range(b - a):
            target, g = targets[i], group_of[a + i]
            if i:
                target += inner[i, :i] @ lost[a : a + i]
            value = grid.nearest(target * inverses[g], bounds[g])
            values[order[a + i]] = value
            np.subtract(weight[a + i], value * sizes[g], out=lost[a + i])
    return values


def descend(weight: np.ndarray, values: np.ndarray, gram: np.ndarray, grid: Grid, passes: int) -> None:
    """Improves `values` and the grid's scales in place: group after group the scale with the least error for its values, then each value the best one
    for all others as they are. The error never grows."""
    rows = weight.shape[1]
    inverse_diagonal = 1 / np.diagonal(gram)
    now = np.empty_like(weight)
    for g, columns in enumerate(grid.groups):
        np.multiply(values[columns], grid.size(g), out=now[columns])
    gradient = gram @ (weight - now)
    for _ in range(passes):
        moved = 0
        for g, columns in enumerate(grid.groups):
            if grid.free:
                _refit(values, now, gradient, gram, grid, g, columns)
            size = grid.size(g)
            inverse, bounds = 1 / size, grid.bounds(g)
            for a in range(columns.start, columns.stop, STEP):
                b = min(a + STEP, columns.stop)
                near = gram[a:b, a:b]
                change = np.empty((b - a, rows), np.float32)
                targets = gradient[a:b].copy()
                for i in range(b - a):
                    target = targets[i]
                    if i:
                        target -= near[i, :i] @ change[:i]
                    target *= inverse_diagonal[a + i]
                    target += now[a + i]
                    target *= inverse
                    value = grid.nearest(target, bounds)
                    new = value * size
                    np.subtract(new, now[a + i], out=change[i])
                    values[a + i], now[a + i] = value, new
                moved += int(np.count_nonzero(change))
                gradient -= gram[:, a:b] @ change
        if moved == 0:
            break


def _refit(values: np.ndarray, now: np.ndarray, gradient: np.ndarray, gram: np.ndarray, grid: Grid, g: int, columns: slice) -> None:
    """The scale of one group that fits its values best, where the stored one is further from it."""
    v = values[columns]
    wanted = np.einsum("kr,kr->r", v, gradient[columns])
    curvature = np.einsum("kr,kr->r", v, gram[columns, columns] @ v)
    step = np.where(curvature > 0, wanted / np.where(curvature > 0, curvature, 1), 0)
    old = grid.scales[g]
    tried = grid.stored(old + step / grid.outer)
    better = np.abs((tried - old) * grid.outer - step) < np.abs(step)
    better &= tried != 0
    grid.scales[g] = np.where(better, tried, old)
    new = v * grid.size(g)
    change = new - now[columns]
    if change.any():
        now[columns] = new
        gradient -= gram[:, columns] @ change
