"""FP8 weights and activations with many rows, on GPUs with a copy engine for tiles (Hopper and newer): the product that prefill spends its time in.

What `linear_fp8` computes, step by step of K in the same order; what differs is how the tiles come. The copy engine fetches them (no thread computes an
address), and a program keeps two sums over a tile of the weight, for two tiles of rows: L2 would have to give 12 TB/s to feed 128 x 128 tiles at full rate,
which it does not, and a single sum of twice the rows would need, with the step's own product beside it, more registers than there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .linear_codes import scale_at
from .rows import Rounded
from .tiles import BAND, Gpu, Tile, empty, narrowed, place, within

if TYPE_CHECKING:
    from .weights import GpuWeight

LEAST_ROWS = 65  # below, the other kernels split K
ALIGNED = 16     # bytes: rows of x as the copy engine takes them


def fits(weight: GpuWeight, rows: int, on: Gpu) -> bool:
    """Whether this kernel multiplies the weight, by what is the same for all rows of a bucket."""
    return weight.bits == 8 and rows >= LEAST_ROWS and on.capability >= (9, 0) and weight.k % ALIGNED == 0 and weight.offsets is None


def plan(weight: GpuWeight, rows: int, step: int, on: Gpu) -> tuple[Tile, int]:
    """(tile, tiles of rows to a program)."""
    halves = 2 if rows > 128 and on.shared >= 200 * 1024 else 1
    stage = 128 * step * (1 + halves)
    return Tile(128, 128, step, 1, 8, max(2, min(5, (on.shared - 2048) // stage))), halves


@triton.jit
def _added(total, numbers, values, by_n, by_row, GROUP: tl.constexpr, X_GROUP: tl.constexpr, ALIKE: tl.constexpr):
    """total [rows, n] plus one step's product, times the scales that hold for this step."""
    partial = tl.dot(values, numbers.T)
    if GROUP > 0 and X_GROUP > 0 and ALIKE:
        return total + partial * (by_row * by_n)
    else:
        if GROUP > 0:
            partial *= by_n
        if X_GROUP > 0:
            partial *= by_row
        return total + partial


@triton.jit
def _n_factor(scales, column, n_at, n_first, n, k, GROUP: tl.constexpr, ALIKE: tl.constexpr):
    if GROUP == 0:
        return tl.full((), 1.0, tl.float32)
    elif ALIKE:
        return scale_at(scales, (column // GROUP) * n + n_first, column < k)
    else:
        return scale_at(scales, (column // GROUP) * n + n_at, within(n_at, n, column < k))[None, :]


@triton.jit
def _row_factor(x_scales, column, row_at, rows, k, X_GROUP: tl.constexpr):
    if X_GROUP == 0:
        return tl.full((), 1.0, tl.float32)
    else:
        return tl.load(x_scales + (column // X_GROUP) * rows + row_at, mask=within(row_at, rows, column < k), other=0.0)[:, None]


@triton.jit
def _stored(total, x_scales, scales, bias, residual, y, row_at, n_at, rows, n, GROUP: tl.constexpr, X_GROUP: tl.constexpr):
    """Scales that hold for all of K, bias, residual, and into y."""
    row_inside, n_inside = row_at < rows, n_at < n
    if GROUP == 0:
        total *= scale_at(scales, n_at, n_inside)[None, :]
    if X_GROUP == 0:
        total *= tl.load(x_scales + row_at, mask=row_inside, other=0.0)[:, None]
    at = row_at.to(tl.int64)[:, None] * n + n_at[None, :]
    inside = row_inside[:, None] & n_inside[None, :]
    if bias is not None:
        total += tl.load(bias + n_at, mask=n_inside, other=0.0)[None, :]
    if residual is not None:
        total += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, narrowed(total, y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def multiply_fp8_wide(x, codes, x_scales, scales, bias, residual, y, rows, n, k, GROUP: tl.constexpr, X_GROUP: tl.constexpr, ALIKE: tl.constexpr,
                      HALVES: tl.constexpr, TILE_N: tl.constexpr, TILE_ROWS: tl.constexpr, STEP: tl.constexpr, BAND: tl.constexpr):
    """x, codes: descriptors of FP8 [rows, k] in tiles [TILE_ROWS, STEP] and [n, k] in tiles [TILE_N, STEP]; beyond the ends they give zeros."""
    row_tile, n_tile = place(rows, n, TILE_N, TILE_ROWS * HALVES, BAND)
    row_first, n_first = row_tile * TILE_ROWS * HALVES, n_tile * TILE_N
    row_at, n_at = row_first + tl.arange(0, TILE_ROWS), n_first + tl.arange(0, TILE_N)
    total = tl.zeros((TILE_ROWS, TILE_N), tl.float32)
    by_n = _n_factor(scales, 0, n_at, n_first, n, k, GROUP, ALIKE)
    by_row = _row_factor(x_scales, 0, row_at, rows, k, X_GROUP)
    if HALVES == 2:
        other = tl.zeros((TILE_ROWS, TILE_N), tl.float32)
    for step in range(0, tl.cdiv(k, STEP)):
        base = step * STEP
        n_ahead = _n_factor(scales, base + STEP, n_at, n_first, n, k, GROUP, ALIKE)
        row_ahead = _row_factor(x_scales, base + STEP, row_at, rows, k, X_GROUP)
        if HALVES == 2:  # not a step ahead, since registers are few; the first tile's product gives it time
            by_other = _row_factor(x_scales, base, row_at + TILE_ROWS, rows, k, X_GROUP)
        numbers = codes.load([n_first, base])
        total = _added(total, numbers, x.load([row_first, base]), by_n, by_row, GROUP, X_GROUP, ALIKE)
        by_row = row_ahead
        if HALVES == 2:
            other = _added(other, numbers, x.load([row_first + TILE_ROWS, base]), by_n, by_other, GROUP, X_GROUP, ALIKE)
        by_n = n_ahead
    _stored(total, x_scales, scales, bias, residual, y, row_at, n_at, rows, n, GROUP, X_GROUP)
    if HALVES == 2:
        _stored(other, x_scales, scales, bias, residual, y, row_at + TILE_ROWS, n_at, rows, n, GROUP, X_GROUP)


def multiply(given: Rounded, weight: GpuWeight, tile: Tile, halves: int, bias: torch.Tensor | None, residual: torch.Tensor | None,
             narrow: bool = False) -> torch.Tensor:
    """[rows, n] float32, or bfloat16 where `narrow` = x W^T + bias + residual, of rounded x; `fits` says for which."""
    rows = len(given.codes)
    y = empty(rows, weight.n, given.codes.device, narrow)
    x = TensorDescriptor.from_tensor(given.codes.view(torch.float8_e4m3fn), [tile.rows, tile.k])
    codes = TensorDescriptor.from_tensor(weight.codes.view(torch.float8_e4m3fn), [tile.n, tile.k])
    grid = (-(-rows // (tile.rows * halves)) * -(-weight.n // tile.n),)
    multiply_fp8_wide[grid](x, codes, given.scales, weight.scales, bias, residual, y, rows, weight.n, weight.k, GROUP=weight.group, X_GROUP=given.group,
                            ALIKE=weight.rows_alike % tile.n == 0, HALVES=halves, TILE_N=tile.n, TILE_ROWS=tile.rows, STEP=tile.k, BAND=BAND,
                            num_warps=tile.warps, num_stages=tile.stages)
    return y
