"""hqq: half-quadratic quantization, without data.

What it is: zero points (or, in symmetric precisions, scales) that make the p-norm of the error least, p below 1: a few weights may be far off, so that the
many are close. Solved by turns: shrink the error to its large part, then fit what is left.
When to choose it: no calibration text, and zero points that may be fractions (option fraction), as HQQ's own files have them.
Limits: with whole zero points rtn, which searches its scales and zero points, was as good or better (2% at 2 and 4 bits of SmolLM2's weights).
Source: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models (2023), mobiusml.github.io/hqq_blog.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...calibration import Statistics
from ...qtensor import QTensor
from ...schemes import TensorSpec
from ..method import Needs
from ._grid import Grid, by_rows, grids

ROWS = 256  # worked on at a time


@dataclass(frozen=True)
class Hqq:
    """p          of the norm
    beta       the weight of the quadratic term at first, in units of 1 / the group's mean |w|; it grows by `growth` every turn
    turns      at most
    fraction   keep fractional zero points: only formats that hold them can be written
    """

    p: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    turns: int = 20
    fraction: bool = False

    needs: ClassVar[Needs] = "nothing"

    def round(self, weight: np.ndarray, spec: TensorSpec, statistics: Statistics | None) -> QTensor:
        tensor, groups, free = grids(weight, spec)
        if not free:
            return tensor

        def work(mine: np.ndarray, grid: Grid) -> np.ndarray:
            grid.search(mine, np.ones((len(mine), 1), np.float32))
            for index, columns in enumerate(groups):
                self._group(mine[columns], grid, index)
            return np.concatenate([_values(mine[columns], grid, index) for index, columns in enumerate(groups)])

        return by_rows(weight, tensor, groups, free, ROWS, work)

    def _group(self, w: np.ndarray, grid: Grid, index: int) -> None:
        """Improves the scale or the zero point of one group; w [columns, rows]. The best of all turns stays, row by row."""
        zeros, steps = grid.zeros, np.float32(2**grid.number.bits - 1)
        unit = np.maximum(np.abs(w).mean(axis=0), np.float32(1e-30))
        best: np.ndarray | None = None
        kept = grid.scales[index].copy(), None if zeros is None else zeros[index].copy()
        beta = self.beta
        for _ in range(self.turns + 1):
            v = _values(w, grid, index)
            error = w - v * grid.size(index)
            loss = (np.abs(error) ** np.float32(self.p)).sum(axis=0)
            if best is None:
                best, better = loss, np.ones(len(loss), bool)
            else:
                better = loss < best
                best = np.where(better, loss, best)
                kept = np.where(better, grid.scales[index], kept[0]), None if zeros is None or kept[1] is None else np.where(better, zeros[index], kept[1])
            size = np.abs(error) / unit
            shrunk = np.sign(error) * unit * np.maximum(size - np.maximum(size, np.float32(1e-8)) ** np.float32(self.p - 1) / np.float32(beta), 0)
            rest = w - shrunk
            if zeros is None:
                vv = np.einsum("kr,kr->r", v, v)
                fitted = grid.stored(np.einsum("kr,kr->r", v, rest) / np.where(vv > 0, vv, 1) / grid.outer)
                grid.scales[index] = np.where((vv > 0) & (fitted != 0), fitted, grid.scales[index])
            else:
                found = (v + zeros[index] - rest / grid.size(index)).mean(axis=0)
                zeros[index] = np.clip(found if self.fraction else np.rint(found), 0, steps)
            beta *= self.growth
        grid.scales[index] = kept[0]
        if zeros is not None and kept[1] is not None:
            zeros[index] = kept[1]


def _values(w: np.ndarray, grid: Grid, index: int) -> np.ndarray:
    """The nearest values in units of the scale; zero points may be fractions."""
    scaled = w / grid.size(index)
    if grid.zeros is None:
        return grid.nearest(scaled, grid.bounds(index))
    zero = grid.zeros[index]
    values: np.ndarray = np.clip(np.rint(scaled + zero), 0, np.float32(2**grid.number.bits - 1)) - zero
    return values


ROUNDER = Hqq
