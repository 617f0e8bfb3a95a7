"""FP4 weights and FP4 activations (NVFP4, MXFP4) on the units that multiply them with their scales: Blackwell's. Elsewhere such weights meet 16-bit
activations (linear_codes).

Two numbers lie in a byte side by side, as the units read them, not in halves. NVFP4 activations have the second level of their scales row by row: what
qtensor.quantize makes of each row alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ..op import Problem
from ._rounding import INTERPRETED, from_e4m3, power, to_e4m3, warps
from .tiles import BAND, Gpu, Tile, bucket, empty, finish, fitted, gathered, gpu, grid, place, split_of, workspace

if TYPE_CHECKING:
    from .weights import GpuWeight

FORMATS = {"nvfp4": "fp8e4m3", "mxfp4": "e8m0"}  # of the scales
STEP = 256  # columns of a step over K


def supports(problem: Problem, capability: tuple[int, int]) -> str | None:
    """Weights and dynamic activations of one FP4 format."""
    spec, weight = problem.activation, problem.weight
    if spec is None or spec.format not in FORMATS or not spec.dynamic:
        return f"FP4 activations are nvfp4 or mxfp4 with dynamic scales, not {spec.format if spec is not None else 'others'}"
    if weight is None or weight.format != spec.format or weight.scale_format != FORMATS[spec.format]:
        return f"{spec.format} activations meet {spec.format} weights, not {weight.format if weight is not None else 'others'}"
    if capability < (10, 0):
        return f"FP4 arithmetic starts with Blackwell (compute capability 10.0), not {capability[0]}.{capability[1]}"
    return None


@dataclass(frozen=True)
class Inputs:
    """codes uint8 [rows, kpad / 2]; scales [groups, rows] uint8 as the weight's; outers float32 [rows]: NaN where a row is no number."""

    codes: torch.Tensor
    scales: torch.Tensor
    outers: torch.Tensor


def wants(weight: GpuWeight, rows: int) -> tuple[object, ...]:
    return "fp4", weight.activation.format


def inputs(x: torch.Tensor, weight: GpuWeight) -> Inputs:
    return rounded(x, weight.activation.format)


def rounded(x: torch.Tensor, format: str) -> Inputs:
    """x [rows, k] float32 or bfloat16 in FP4, groups of 16 (nvfp4) or 32 (mxfp4) columns."""
    rows, k = x.shape
    group = 16 if format == "nvfp4" else 32
    groups, size = -(-k // group), -(-k // 64) * 32
    made = Inputs(torch.empty((rows, size), dtype=torch.uint8, device=x.device), torch.empty((groups, rows), dtype=torch.uint8, device=x.device),
                  torch.empty(rows, dtype=torch.float32, device=x.device))
    if rows:
        block = power(2 * size)
        quantize_fp4[(rows,)](x, made.codes, made.scales, made.outers, k, size, groups, x.stride(0), GROUP=group, BLOCK=block, num_warps=warps(block))
    return made


@triton.jit
def quantize_fp4(x, codes, scales, outers, k, size, groups, x_stride, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Program (row). Groups of 16: E4M3 scales under one of the row; of 32: powers of two."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < k
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    sound = tl.max((~(tl.abs(values) < float("inf"))).to(tl.int32), axis=0) == 0
    values = tl.reshape(tl.where(sound, values, 0.0), (BLOCK // GROUP, GROUP))
    largest = tl.max(tl.abs(values), axis=1)
    if GROUP == 16:
        outer = tl.div_rn(tl.max(largest, axis=0), tl.full((), 2688.0, tl.float32))  # 6 * 448: the largest code under the largest scale
        wanted = tl.div_rn(largest, tl.zeros_like(largest) + 6.0)
        stored = to_e4m3(tl.div_rn(wanted, tl.where(outer == 0.0, 1.0, outer) + tl.zeros_like(largest)))
        scale = from_e4m3(stored) * outer
    else:
        outer = tl.full((), 1.0, tl.float32)
        exponent = tl.minimum((largest * 0.25).to(tl.int32, bitcast=True) >> 23, 254)
        stored = exponent.to(tl.uint8)
        scale = tl.maximum(exponent << 23, 0x00400000).to(tl.float32, bitcast=True)
    a = tl.div_rn(tl.abs(values), tl.where(scale == 0.0, 1.0, scale)[:, None] + tl.zeros_like(values))
    # ties to the even code of 0 0.5 1 1.5 2 3 4 6
    code = (a > 0.25).to(tl.int32) + (a >= 0.75).to(tl.int32) + (a > 1.25).to(tl.int32) + (a >= 1.75).to(tl.int32)
    code += (a > 2.5).to(tl.int32) + (a >= 3.5).to(tl.int32) + (a > 5.0).to(tl.int32)
    code = tl.where(values < 0, code | 8, code)
    low, high = tl.split(tl.reshape(code, (BLOCK // 2, 2)))
    byte = tl.arange(0, BLOCK // 2)
    tl.store(codes + row * size + byte, (low | (high << 4)).to(tl.uint8), mask=byte < size)
    group = tl.arange(0, BLOCK // GROUP)
    tl.store(scales + group.to(tl.int64) * tl.num_programs(0) + row, stored, mask=group < groups)
    tl.store(outers + row, tl.where(sound, outer, float("nan")))


def plan(weight: GpuWeight, rows: int, on: Gpu) -> Tile:
    """The usual tile for so many rows: the units take 128 outputs at a time."""
    size = bucket(rows)
    split = split_of(weight.n, weight.k, 128, STEP, on.processors) if size <= 64 else 1
    return fitted(Tile(128, size, STEP, split, 4 if size <= 64 else 8, 4), 4, 1, on)


@triton.jit
def _decoded(packed, scales, GROUP: tl.constexpr, HIGH: tl.constexpr, BYTES: tl.constexpr):
    """float32 [HIGH, 2 * BYTES] of packed codes [HIGH, BYTES] and their scales, where no unit does it."""
    code = tl.interleave(packed & 15, packed >> 4).to(tl.int32)
    exponent, odd = (code >> 1) & 3, (code & 1).to(tl.float32)
    value = tl.where(exponent == 0, odd * 0.5, (1.0 + odd * 0.5) * tl.exp2(exponent.to(tl.float32) - 1.0))
    value = tl.where(code >= 8, -value, value)
    if GROUP == 16:
        scale = from_e4m3(scales)
    else:
        scale = tl.maximum(scales.to(tl.int32) << 23, 0x00400000).to(tl.float32, bitcast=True)
    value = tl.reshape(value, (HIGH, 2 * BYTES // GROUP, GROUP)) * scale[:, :, None]
    return tl.reshape(value, (HIGH, 2 * BYTES))


@triton.jit(do_not_specialize=["rows"])
def multiply_fp4(x, x_scales, outers, codes, scales, bias, residual, y, parts, arrivals, rows, n, k, groups, row_bytes, outer, GROUP: tl.constexpr,
                 DECODED: tl.constexpr, SPLIT: tl.constexpr, TILE_N: tl.constexpr, TILE_ROWS: tl.constexpr, STEP: tl.constexpr, BAND: tl.constexpr):
    BYTES: tl.constexpr = STEP // 2
    RUNS: tl.constexpr = STEP // GROUP
    row_tile, n_tile = place(rows, n, TILE_N, TILE_ROWS, BAND)
    row_at = row_tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    n_at = n_tile * TILE_N + tl.arange(0, TILE_N)
    row_inside, n_inside = row_at < rows, n_at < n
    x_rows = x + row_at.to(tl.int64) * row_bytes
    codes_rows = codes + tl.minimum(n_at, n - 1).to(tl.int64) * row_bytes
    steps = tl.cdiv(k, STEP)
    each = tl.cdiv(steps, SPLIT)
    first = tl.program_id(1) * each
    total = tl.zeros((TILE_N, TILE_ROWS), tl.float32)
    for step in range(first, tl.minimum(first + each, steps)):
        byte = step * BYTES + tl.arange(0, BYTES)
        group = step * RUNS + tl.arange(0, RUNS)
        packed = tl.load(codes_rows[:, None] + byte[None, :], mask=(byte < row_bytes)[None, :], other=0)
        values = tl.load(x_rows[:, None] + byte[None, :], mask=row_inside[:, None] & (byte < row_bytes)[None, :], other=0)
        there = (group < groups)[None, :]
        by_n = tl.load(scales + group[None, :] * n + n_at[:, None], mask=n_inside[:, None] & there, other=0)
        by_row = tl.load(x_scales + group[None, :] * rows + row_at[:, None], mask=row_inside[:, None] & there, other=0)
        if DECODED:
            total = tl.dot(_decoded(packed, by_n, GROUP, TILE_N, BYTES), tl.trans(_decoded(values, by_row, GROUP, TILE_ROWS, BYTES)), total,
                           input_precision="ieee")
        elif GROUP == 16:
            total = tl.dot_scaled(packed, by_n.to(tl.float8e4nv, bitcast=True), "e2m1", tl.trans(values), by_row.to(tl.float8e4nv, bitcast=True), "e2m1", total)
        else:
            total = tl.dot_scaled(packed, by_n, "e2m1", tl.trans(values), by_row, "e2m1", total)
    factor = (tl.load(outers + row_at, mask=row_inside, other=0.0) * outer)[None, :]
    if SPLIT > 1:
        at = row_at.to(tl.int64)[None, :] * n + n_at[:, None]
        last, total = gathered(total, parts, arrivals, at, row_inside[None, :] & n_inside[:, None], rows.to(tl.int64) * n, n_tile, SPLIT)
        if last:
            finish(y, bias, residual, total * factor, n_at, row_at, rows, n)
    else:
        finish(y, bias, residual, total * factor, n_at, row_at, rows, n)


def multiply(given: Inputs, weight: GpuWeight, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None, tile: Tile | None = None,
             narrow: bool = False) -> torch.Tensor:
    """[rows, n] float32, or bfloat16 where `narrow` = x W^T + bias + residual, of rounded x."""
    rows, device = len(given.codes), given.codes.device
    tile = tile or plan(weight, rows, gpu(device))
    y = empty(rows, weight.n, device, narrow)
    if not rows or weight.scales is None:
        return y
    parts, arrivals = workspace(given.codes, rows, weight.n, tile, weight.counters)
    multiply_fp4[grid(rows, weight.n, tile)](
        given.codes, given.scales, given.outers, weight.codes, weight.scales.view(torch.uint8), bias, residual, y, parts, arrivals, rows, weight.n, weight.k,
        len(weight.scales), weight.codes.shape[1], weight.outer, GROUP=weight.group or weight.spec.size, DECODED=INTERPRETED, SPLIT=tile.split, TILE_N=tile.n,
        TILE_ROWS=tile.rows, STEP=tile.k, BAND=BAND, num_warps=tile.warps, num_stages=tile.stages)
    return y
