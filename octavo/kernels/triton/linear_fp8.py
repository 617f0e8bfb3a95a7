"""FP8 E4M3 activations, and weights in FP8 (a scale per row, per group or per block of 128 x 128) or in 4 bits (W4Afp8), whose numbers FP8 holds exactly.

Every step over K is a product of its own, added up in float32: Hopper's FP8 units keep about 14 bits of a sum, too few for a long one. Where a tile of n lies
within one block of the weight, its scale is one number and joins the activations' before it meets the sum: one multiplication for each number, not two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ... import formats
from ..op import Problem
from . import _nibbles, linear_fp8_wide
from ._rounding import INTERPRETED
from .linear_int8 import columns_of, completed, n_factor, row_factor, shared, whole_scaled
from .rows import Rounded, rounded
from .tiles import BAND, Gpu, Tile, empty, even, gathered, gpu, grid, place, usual, workspace

if TYPE_CHECKING:
    from .weights import GpuWeight

WIDEST_STEP = 128
E2M1_BYTES = (0x00, 0x30, 0x38, 0x3C, 0x40, 0x44, 0x48, 0x4C, 0x80, 0xB0, 0xB8, 0xBC, 0xC0, 0xC4, 0xC8, 0xCC)          # 0 0.5 1 1.5 2 3 4 6, in E4M3
INTEGER_BYTES = (0xD0, 0xCE, 0xCC, 0xCA, 0xC8, 0xC4, 0xC0, 0xB8, 0x00, 0x38, 0x40, 0x44, 0x48, 0x4A, 0x4C, 0x4E)       # -8 .. 7, in E4M3


def supports(problem: Problem, capability: tuple[int, int]) -> str | None:
    """FP8 E4M3 weights, integers of 3 and 4 bits, MXFP4; dynamic scales of activations per token or group."""
    spec, weight = problem.activation, problem.weight
    if spec is None or spec.format not in ("fp8e4m3", "mxfp8"):
        return f"no kernel multiplies {spec.format if spec is not None else 'other'} activations here: they are int8, fp8e4m3 or 16-bit"
    if spec.format == "mxfp8" or not spec.dynamic or spec.granularity not in ("token", "group"):
        return f"FP8 activations have dynamic float32 scales per token or group, not {'dynamic' if spec.dynamic else 'static'} ones per {spec.granularity}"
    if weight is None or not weight.quantized:
        return "FP8 activations meet quantized weights"
    four = formats.get(weight.format).kind == "int" and formats.get(weight.format).bits in (3, 4)
    if weight.format not in ("fp8e4m3", "mxfp4") and not four:
        return f"FP8 activations meet fp8e4m3, mxfp4 or integers of 3 and 4 bits, not {weight.format}"
    if shared(columns_of(weight), spec.size, formats.get(weight.format).bits) < 32:
        return f"FP8 products need scales that hold for 32 columns, not groups of {weight.columns or weight.size} and {spec.size}"
    if capability < (8, 9):
        return f"FP8 arithmetic starts with Ada (compute capability 8.9), not {capability[0]}.{capability[1]}"
    return None


def wants(weight: GpuWeight, rows: int) -> tuple[object, ...]:
    return "fp8", weight.activation.size, 0 if weight.offsets is None else weight.group or weight.k


def inputs(x: torch.Tensor, weight: GpuWeight) -> Rounded:
    return completed(rounded(x, "fp8e4m3", weight.activation.size), weight)


def step_of(weight: GpuWeight) -> int:
    """Columns of a step over K: as long as no scale changes, at least a block of packed codes."""
    columns = min(WIDEST_STEP, shared(weight.group, weight.activation.size if weight.activation.size < weight.k else 0, weight.bits))
    return columns if weight.bits == 8 else max(columns, 64)


def plan(weight: GpuWeight, rows: int, on: Gpu) -> Tile:
    """The usual tile for so many rows on a GPU."""
    return usual(weight.n, weight.k, rows, step_of(weight), weight.bits, 1, on)


@triton.jit
def _numbers(codes, table, PART: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr):
    """FP8 numbers of one part of a tile of codes."""
    if BITS == 8:
        return codes
    elif ASM is not None:
        return tl.inline_asm_elementwise(ASM, "=r,r", [codes], dtype=tl.int8, is_pure=True, pack=4).to(tl.float8e4nv, bitcast=True)
    else:
        return tl.load(table + ((codes >> (4 * PART)) & 15).to(tl.int32)).to(tl.float8e4nv, bitcast=True)


@triton.jit(do_not_specialize=["rows"])
def multiply_fp8(x, x_scales, codes, scales, offsets, sums, table, bias, residual, y, parts, arrivals, rows, n, k, row_bytes, spans,
                 BITS: tl.constexpr, GROUP: tl.constexpr, X_GROUP: tl.constexpr, ALIKE: tl.constexpr, ASM: tl.constexpr, ASM_HIGH: tl.constexpr,
                 EVEN: tl.constexpr, SPLIT: tl.constexpr, TILE_N: tl.constexpr, TILE_ROWS: tl.constexpr, STEP: tl.constexpr, BAND: tl.constexpr):
    """GROUP, X_GROUP: columns to a scale, 0 where one scale holds for a row. ALIKE: all of a tile's n have the same scales."""
    PARTS: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = STEP // PARTS
    LANE: tl.constexpr = 64 // PARTS
    PARTED: tl.constexpr = PARTS == 2 and (GROUP % 64 != 0 or X_GROUP % 64 != 0)  # low and high nibbles have scales of their own
    row_tile, n_tile = place(rows, n, TILE_N, TILE_ROWS, BAND)
    row_at = row_tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    n_at = n_tile * TILE_N + tl.arange(0, TILE_N)
    n_first = n_tile * TILE_N
    row_inside, n_inside = row_at < rows, n_at < n
    x_rows = x + row_at.to(tl.int64) * k
    codes_rows = codes + tl.minimum(n_at, n - 1).to(tl.int64) * row_bytes
    element = tl.arange(0, BYTES)
    steps = tl.cdiv(k, STEP)
    each = tl.cdiv(steps, SPLIT)
    first = tl.program_id(1) * each
    total = tl.zeros((TILE_N, TILE_ROWS), tl.float32)
    end = tl.minimum((first + each) * STEP, k)
    if GROUP > 0 and not PARTED:
        by_n = n_factor(scales, first * STEP, n_at, n_first, n, end, GROUP, ALIKE)
    if X_GROUP > 0 and not PARTED:
        by_row = row_factor(x_scales, first * STEP, row_at, rows, end, X_GROUP)
    for step in range(first, tl.minimum(first + each, steps)):
        base = step * STEP
        if GROUP > 0 and not PARTED:  # the next step's, since Triton reads ahead only what products take
            n_ahead = n_factor(scales, base + STEP, n_at, n_first, n, end, GROUP, ALIKE)
        if X_GROUP > 0 and not PARTED:
            row_ahead = row_factor(x_scales, base + STEP, row_at, rows, end, X_GROUP)
        byte = step * BYTES + element
        if EVEN:
            packed = tl.load(codes_rows[:, None] + byte[None, :])
        elif BITS == 8:
            packed = tl.load(codes_rows[:, None] + byte[None, :], mask=(byte < row_bytes)[None, :], other=0.0)
        else:
            packed = tl.load(codes_rows[:, None] + byte[None, :], mask=(byte < row_bytes)[None, :], other=0)
        partial = tl.zeros((TILE_N, TILE_ROWS), tl.float32)
        for part in tl.static_range(PARTS):
            if PARTS == 1:
                column = base + element
            else:
                column = base + (element // LANE) * 64 + part * LANE + element % LANE
            if EVEN:
                values = tl.load(x_rows[None, :] + column[:, None], mask=row_inside[None, :], other=0.0)
            else:
                values = tl.load(x_rows[None, :] + column[:, None], mask=row_inside[None, :] & (column < k)[:, None], other=0.0)
            if part == 0:
                numbers = _numbers(packed, table, 0, BITS, ASM)
            else:
                numbers = _numbers(packed, table, 1, BITS, ASM_HIGH)
            partial = tl.dot(numbers, values, partial)
            if PARTED:
                if GROUP > 0:
                    partial *= n_factor(scales, base + part * LANE, n_at, n_first, n, end, GROUP, ALIKE)
                if X_GROUP > 0:
                    partial *= row_factor(x_scales, base + part * LANE, row_at, rows, end, X_GROUP)
                total += partial
                partial = tl.zeros((TILE_N, TILE_ROWS), tl.float32)
        if not PARTED:
            if GROUP > 0 and X_GROUP > 0 and ALIKE:
                partial *= by_row * by_n
            else:
                if GROUP > 0:
                    partial *= by_n
                if X_GROUP > 0:
                    partial *= by_row
            if GROUP > 0:
                by_n = n_ahead
            if X_GROUP > 0:
                by_row = row_ahead
            total += partial
    if SPLIT > 1:
        at = row_at.to(tl.int64)[None, :] * n + n_at[:, None]
        last, total = gathered(total, parts, arrivals, at, row_inside[None, :] & n_inside[:, None], rows.to(tl.int64) * n, n_tile, SPLIT)
        if last:
            whole_scaled(total, x_scales, scales, offsets, sums, bias, residual, y, rows, n, spans, row_at, n_at, GROUP, X_GROUP)
    else:
        whole_scaled(total, x_scales, scales, offsets, sums, bias, residual, y, rows, n, spans, row_at, n_at, GROUP, X_GROUP)


def multiply(given: Rounded, weight: GpuWeight, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None,
             tile: Tile | None = None, narrow: bool = False) -> torch.Tensor:
    """[rows, n] float32, or bfloat16 where `narrow` = x W^T + bias + residual, of rounded x."""
    rows, device = len(given.codes), given.codes.device
    if tile is None and linear_fp8_wide.fits(weight, rows, gpu(device)):
        wide, halves = linear_fp8_wide.plan(weight, rows, step_of(weight), gpu(device))
        return linear_fp8_wide.multiply(given, weight, wide, halves, bias, residual, narrow)
    tile = tile or plan(weight, rows, gpu(device))
    y = empty(rows, weight.n, device, narrow)
    if not rows:
        return y
    parts, arrivals = workspace(given.codes, rows, weight.n, tile, weight.counters)
    eight = weight.codes.view(torch.float8_e4m3fn) if weight.bits == 8 else weight.codes
    multiply_fp8[grid(rows, weight.n, tile)](
        given.codes.view(torch.float8_e4m3fn), given.scales, eight, weight.scales, weight.offsets, given.sums, table_of(weight), bias, residual, y, parts,
        arrivals, rows, weight.n, weight.k, weight.codes.shape[1], 0 if given.sums is None else given.sums.shape[1],
        num_warps=tile.warps, num_stages=tile.stages, **constants(weight, given.group, tile))
    return y


def table_of(weight: GpuWeight) -> torch.Tensor | None:
    """The FP8 bytes of 16 codes, where the kernel looks them up in memory."""
    if weight.bits == 8 or not INTERPRETED:
        return None
    return torch.tensor(_bytes_of(weight), dtype=torch.uint8, device=weight.codes.device)


def _bytes_of(weight: GpuWeight) -> tuple[int, ...]:
    return E2M1_BYTES if weight.kind == "table" else INTEGER_BYTES


def constants(weight: GpuWeight, group: int, tile: Tile) -> dict[str, object]:
    """What the kernel is compiled for."""
    nibbles = weight.bits == 4 and not INTERPRETED
    return {"BITS": weight.bits, "GROUP": weight.group, "X_GROUP": group, "ALIKE": weight.rows_alike % tile.n == 0,
            "ASM": _nibbles.byte_table(_bytes_of(weight), 0) if nibbles else None, "ASM_HIGH": _nibbles.byte_table(_bytes_of(weight), 1) if nibbles else None,
            "EVEN": even((weight.k,), tile.k), "SPLIT": tile.split, "TILE_N": tile.n, "TILE_ROWS": tile.rows, "STEP": tile.k, "BAND": BAND}
