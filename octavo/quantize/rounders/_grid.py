"""Grid: the values that the weights of a group may take, and the search for the scales that make them fit.

Arrays here are transposed, [k, rows]: what belongs to one input lies together, so that a step over the inputs works on whole runs of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from ... import _native, formats
from ...qtensor import QTensor, round_scales, unfitted
from ...qtensor import quantize as to_nearest
from ...schemes import TensorSpec

COARSE = ("e8m0", "fp8e4m3")  # scale formats too coarse for least squares: neighbours are compared
RATIOS = {2: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), 3: (1.05, 0.95, 0.87, 0.8, 0.72, 0.65), 4: (1.04, 1.0, 0.96, 0.92, 0.88, 0.83, 0.77)}
RATIOS_WIDE = (1.0, 0.9, 0.8, 0.7, 0.6)  # from 5 bits on, and for tables
RATIOS_EXACT = (2.0, 1.0, 0.5)  # powers of two
RATIOS_COARSE = (1.12, 1.0, 0.93, 0.86, 0.8)
STORES = {"fp32": 0, "bf16": 1, "fp16": 2}  # ScaleStore of csrc/lattice.h; other scale formats are tables


@dataclass
class Grid:
    """Scales of the columns of one piece of a weight.

    spec    what is stored; `scales` [groups, rows] float32 are rounded to its scale format, `outer` multiplies them (NVFP4)
    zeros   [groups, rows] float32 whole numbers, or None
    groups  the columns of each group, as slices
    free    whether the scales may be changed: not where rows share them
    first_ratios  parts of the full range to search first, where the scales are still those of the full range (see qtensor.unfitted)
    """

    spec: TensorSpec
    scales: np.ndarray
    zeros: np.ndarray | None
    outer: np.float32
    groups: list[slice]
    free: bool
    first_ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.number = formats.get(self.spec.format)
        self.integer = self.number.kind == "int"
        self.starts = np.array([columns.start for columns in self.groups] + [self.groups[-1].stop], np.int32)

    def size(self, group: int) -> np.ndarray:
        """float32 [rows]: what a step of 1 is worth in this group; 1 where the scale is 0."""
        scale: np.ndarray = self.scales[group] * self.outer
        return np.where(scale == 0, np.float32(1), scale)

    def bounds(self, group: int) -> tuple[np.ndarray | np.float32, np.ndarray | np.float32]:
        """The smallest and the largest value, in units of the scale; for integers."""
        if self.zeros is None:
            return np.float32(self.number.low), np.float32(self.number.high)
        return -self.zeros[group], np.float32(2**self.number.bits - 1) - self.zeros[group]

    def nearest(self, scaled: np.ndarray, bounds: tuple[np.ndarray | np.float32, np.ndarray | np.float32]) -> np.ndarray:
        """The nearest values to numbers in units of the scale; integers overwrite them."""
        if not self.integer:
            found: np.ndarray = self.number.decode(self.number.encode(scaled))
            return found
        np.rint(scaled, out=scaled)
        np.maximum(scaled, bounds[0], out=scaled)
        return np.minimum(scaled, bounds[1], out=scaled)

    def stored(self, scales: np.ndarray) -> np.ndarray:
        """Scales as the file holds them."""
        rounded: np.ndarray = round_scales(scales.astype(np.float32, copy=False), self.spec.scale_format)
        return rounded

    def rounded(self, weight: np.ndarray) -> np.ndarray:
        """The nearest values [k, rows], in units of their scales."""
        out = np.empty_like(weight)
        for index, columns in enumerate(self.groups):
            out[columns] = self.nearest(weight[columns] / self.size(index), self.bounds(index))
        return out

    def codes(self, values: np.ndarray) -> np.ndarray:
        """The codes [k, rows] of values in units of their scales."""
        if not self.integer:
            found: np.ndarray = self.number.encode(values)
            return found
        if self.zeros is None:
            return values.astype(np.int8)
        out = np.empty(values.shape, np.uint8)
        for index, columns in enumerate(self.groups):
            out[columns] = np.rint(values[columns] + self.zeros[index])  # zeros may be fractions
        return out

    def search(self, weight: np.ndarray, importance: np.ndarray) -> None:
        """The scales (and zeros) with the least squared error of `weight` [k, rows], weighted by `importance`, [k, 1] or [k, rows]: of a few
        clipped ranges, each with its least-squares scale, the best. The zero keeps the range centred; at 2 and 3 bits its neighbours are tried, too."""
        if not self.free:
            return
        if self.first_ratios:
            self._search(weight, np.abs(weight), self.first_ratios)
        ratios = RATIOS_EXACT if self.spec.scale_format == "e8m0" else RATIOS_COARSE if self.spec.scale_format in COARSE else (
            RATIOS.get(self.spec.bits, RATIOS_WIDE) if self.integer else RATIOS_WIDE)
        self._search(weight, importance, ratios)

    def _search(self, weight: np.ndarray, importance: np.ndarray, ratios: tuple[float, ...]) -> None:
        _native.search_scales(weight, importance, self.starts, np.array(ratios, np.float32), self.spec.scale_format not in COARSE, self.zeros,
                              float(2**self.number.bits - 1), 1 if self.number.bits > 3 else 3, *self.native())

    def native(self) -> tuple[np.ndarray, float, np.ndarray, np.ndarray, np.ndarray | None, int, np.ndarray | None]:
        """The grid as csrc/lattice.h wants it: scales, outer, low, high, table, what scales are stored as, and their table."""
        low, high, table = np.zeros_like(self.scales), np.zeros_like(self.scales), None
        if self.integer:
            for g in range(len(self.scales)):
                low[g], high[g] = self.bounds(g)
        else:
            table = _numbers(self.spec.format)
        store = STORES.get(self.spec.scale_format, 3)
        return self.scales, float(self.outer), low, high, table, store, _numbers(self.spec.scale_format) if store == 3 else None


@cache
def _numbers(token: str) -> np.ndarray:
    """float32, ascending: all finite values of a small format."""
    number = formats.get(token)
    found = number.decode(np.arange(1 << number.bits, dtype=np.uint8)).astype(np.float32)
    return np.unique(found[np.isfinite(found)])


def grids(weight: np.ndarray, spec: TensorSpec) -> tuple[QTensor, list[slice], bool]:
    """`weight` [n, k] rounded to nearest, for its first scales; the groups of its columns; whether scales belong to one row each (Grid.free)."""
    return to_nearest(weight, spec), groups_of(weight.shape[1], spec), spec.granularity in ("group", "channel")


def groups_of(k: int, spec: TensorSpec) -> list[slice]:
    """The columns of each group of a weight with k of them."""
    step = spec.size if spec.granularity == "group" else spec.columns if spec.granularity == "block" else k
    return [slice(a, min(a + step, k)) for a in range(0, k, step)]


def full_range(weight: np.ndarray, spec: TensorSpec) -> tuple[QTensor, list[slice], bool, tuple[float, ...]]:
    """As `grids` for who searches scales and values anyway: without codes, with the scales of the full range and what Grid.first_ratios is. Where rows
    share scales, which then are not searched, they are those of rounding to nearest."""
    if spec.granularity not in ("group", "channel"):
        return *grids(weight, spec), ()
    tensor, ratios = unfitted(weight, spec)
    return tensor, groups_of(weight.shape[1], spec), True, ratios


def by_rows(weight: np.ndarray, tensor: QTensor, groups: list[slice], free: bool, rows: int, work: Callable[[np.ndarray, Grid], np.ndarray]) -> QTensor:
    """`weight` [n, k] with the grids of `tensor`, `rows` rows at a time: `work(their weights [k, rows], their Grid)` returns their values [k, rows] in
    units of the scales, and may change the grid."""
    return begin_rows(weight, tensor, groups, free, rows, work, None)()


def begin_rows(weight: np.ndarray, tensor: QTensor, groups: list[slice], free: bool, rows: int, work: Callable[[np.ndarray, Grid], np.ndarray],
               pool: ThreadPoolExecutor | None, first_ratios: tuple[float, ...] = ()) -> Callable[[], QTensor]:
    """As by_rows, by the threads of `pool`; what it returns waits for them."""
    def one(part: slice) -> tuple[Grid, np.ndarray]:
        grid = replace(piece(tensor, groups, free, part), first_ratios=first_ratios)
        return grid, work(np.ascontiguousarray(weight[part].T, np.float32), grid)

    parts = [slice(a, min(a + rows, len(weight))) for a in range(0, len(weight), rows)]
    pieces = map(one, parts) if pool is None else pool.map(one, parts)

    def wait() -> QTensor:
        assert tensor.scales is not None
        codes, scales, zeros = np.empty_like(tensor.codes), tensor.scales.copy(), None if tensor.zeros is None else tensor.zeros.copy()
        for part, (grid, values) in zip(parts, pieces, strict=True):
            codes[part] = grid.codes(values).T
            if free:
                scales[part] = grid.scales.T
                if zeros is not None and grid.zeros is not None:
                    zeros[part] = grid.zeros.T
        return replace(tensor, codes=codes, scales=scales, zeros=zeros)

    return wait


def piece(tensor: QTensor, groups: list[slice], free: bool, rows: slice) -> Grid:
    """The Grid of some rows."""
    spec = tensor.spec
    index = np.arange(rows.start, rows.stop)
    index = index // spec.size if spec.granularity == "block" else np.zeros_like(index) if spec.granularity == "tensor" else index
    assert tensor.scales is not None
    zeros = None if tensor.zeros is None else np.ascontiguousarray(tensor.zeros[index].T, np.float32)
    outer = np.float32(1) if tensor.outer is None else np.float32(tensor.outer)
    return Grid(spec, np.ascontiguousarray(tensor.scales[index].T, np.float32), zeros, outer, groups, free)
