"""INT8 activations and integer weights (W8A8, W4A8, W2A8): exact sums in int32 of as many columns as share their scales, added up in float32.

Where the weight has one scale per row and the activations one per token, that is all of K and one multiplication at the end. Weights of 4 and 2 bits become
bytes in registers. Offsets meet the sums of what the activations' codes stand for.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ... import formats
from ...schemes import TensorSpec
from ..op import Problem
from . import _nibbles
from ._rounding import INTERPRETED
from .linear_codes import scale_at
from .rows import Rounded, rounded, rounded_sums
from .tiles import BAND, Gpu, Tile, empty, even, finish, gathered, gpu, grid, place, usual, within, workspace

if TYPE_CHECKING:
    from .weights import GpuWeight

WIDEST_STEP = {2: 256, 4: 256, 8: 128}


def supports(problem: Problem, capability: tuple[int, int]) -> str | None:
    """Integer weights of at most 8 bits; dynamic scales per token or group, or one static scale."""
    spec, weight = problem.activation, problem.weight
    if spec is None or spec.format != "int8":
        return "these kernels multiply int8 activations"
    if not spec.symmetric or (spec.granularity not in ("token", "group") if spec.dynamic else spec.granularity != "tensor"):
        return f"int8 activations have a static scale or dynamic ones per token or group, without zero points, not {spec.granularity}"
    if weight is None or not weight.quantized or formats.get(weight.format).kind != "int":
        return f"int8 activations meet integer weights, not {weight.format if weight is not None else 'none'}"
    if shared(columns_of(weight), spec.size, formats.get(weight.format).bits) < 32:
        return f"int8 products need scales that hold for 32 columns (2 bits: 64), not groups of {weight.columns or weight.size} and {spec.size}"
    if capability < (8, 0):
        return f"the kernels want Ampere or newer (compute capability 8.0), not {capability[0]}.{capability[1]}"
    return None


def columns_of(spec: TensorSpec) -> int:
    """Columns that share a scale of a weight, 0 for all."""
    return spec.size if spec.granularity == "group" else spec.columns if spec.granularity == "block" else 0


def shared(weight_group: int, group: int, bits: int) -> int:
    """Columns within which no scale changes, at most those of a step: a power of two; 1 where no kernel takes so few. Nibbles of a block of 64 columns are two
    runs of 32, two bits four of 16, which is less than a product takes."""
    stored = 8 if bits > 4 else 4 if bits > 2 else 2
    columns = WIDEST_STEP[stored]
    for size in (weight_group, group):
        if size:
            columns = gcd(columns, size)
    return columns if columns >= (64 if stored == 2 else 32) else 1


def wants(weight: GpuWeight, rows: int) -> tuple[object, ...]:
    return "int8", weight.activation.size, weight.input_scale, 0 if weight.offsets is None else weight.group or weight.k


def inputs(x: torch.Tensor, weight: GpuWeight) -> Rounded:
    return completed(rounded(x, "int8", weight.activation.size, weight.input_scale), weight)


def completed(given: Rounded, weight: GpuWeight) -> Rounded:
    """With the sums that the weight's offsets meet."""
    return given if weight.offsets is None else replace(given, sums=rounded_sums(given, weight.group or weight.k))


def step_of(weight: GpuWeight) -> int:
    """Columns of a step over K: as long as no scale changes, at least a block of packed codes."""
    columns = shared(weight.group, weight.activation.size if weight.activation.size < weight.k else 0, weight.bits)
    return columns if weight.bits == 8 else max(columns, 64)


def plan(weight: GpuWeight, rows: int, on: Gpu) -> Tile:
    """The usual tile for so many rows on a GPU."""
    return usual(weight.n, weight.k, rows, step_of(weight), weight.bits, 1, on)


@triton.jit
def _bytes(codes, PART: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr):
    """int8 numbers of one part of a tile of packed codes."""
    if BITS == 8:
        return codes
    elif ASM is not None:
        return tl.inline_asm_elementwise(ASM, "=r,r", [codes], dtype=tl.int8, is_pure=True, pack=4)
    elif BITS == 4:
        return ((codes >> (4 * PART)) & 15).to(tl.int8) - 8
    else:
        return ((codes >> (2 * PART)) & 3).to(tl.int8) - 2


@triton.jit
def n_factor(scales, column, n_at, n_first, n, end, GROUP: tl.constexpr, ALIKE: tl.constexpr):
    """The weight's scales of a column before `end` (0 beyond): [TILE_N, 1], or one number where the whole tile has it."""
    if ALIKE:
        return scale_at(scales, (column // GROUP) * n + n_first, column < end)
    else:
        return scale_at(scales, (column // GROUP) * n + n_at, within(n_at, n, column < end))[:, None]


@triton.jit
def row_factor(x_scales, column, row_at, rows, end, X_GROUP: tl.constexpr):
    """The activations' scales of a column before `end` (0 beyond): [1, TILE_ROWS]."""
    return tl.load(x_scales + (column // X_GROUP) * rows + row_at, mask=within(row_at, rows, column < end), other=0.0)[None, :]


@triton.jit(do_not_specialize=["rows"])
def multiply_int8(x, x_scales, codes, scales, offsets, sums, bias, residual, y, parts, arrivals, rows, n, k, row_bytes, spans,
                  BITS: tl.constexpr, GROUP: tl.constexpr, X_GROUP: tl.constexpr, ASM: tl.constexpr, ASM_HIGH: tl.constexpr, EVEN: tl.constexpr,
                  SPLIT: tl.constexpr, TILE_N: tl.constexpr, TILE_ROWS: tl.constexpr, STEP: tl.constexpr, BAND: tl.constexpr):
    """GROUP, X_GROUP: columns to a scale, 0 where one scale holds for a row."""
    PARTS: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = STEP // PARTS
    LANE: tl.constexpr = 64 // PARTS
    WHOLE: tl.constexpr = GROUP == 0 and X_GROUP == 0
    PARTED: tl.constexpr = PARTS == 2 and (GROUP % 64 != 0 or X_GROUP % 64 != 0)  # low and high nibbles have scales of their own
    row_tile, n_tile = place(rows, n, TILE_N, TILE_ROWS, BAND)
    row_at = row_tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    n_at = n_tile * TILE_N + tl.arange(0, TILE_N)
    row_inside, n_inside = row_at < rows, n_at < n
    x_rows = x + row_at.to(tl.int64) * k
    codes_rows = codes + tl.minimum(n_at, n - 1).to(tl.int64) * row_bytes
    element = tl.arange(0, BYTES)
    steps = tl.cdiv(k, STEP)
    each = tl.cdiv(steps, SPLIT)
    first = tl.program_id(1) * each
    total = tl.zeros((TILE_N, TILE_ROWS), tl.float32)
    counted = tl.zeros((TILE_N, TILE_ROWS), tl.int32)
    end = tl.minimum((first + each) * STEP, k)
    if GROUP > 0 and not PARTED:
        by_n = n_factor(scales, first * STEP, n_at, n_at, n, end, GROUP, False)
    if X_GROUP > 0 and not PARTED:
        by_row = row_factor(x_scales, first * STEP, row_at, rows, end, X_GROUP)
    for step in range(first, tl.minimum(first + each, steps)):
        base = step * STEP
        if GROUP > 0 and not PARTED:  # the next step's, since Triton reads ahead only what products take
            n_ahead = n_factor(scales, base + STEP, n_at, n_at, n, end, GROUP, False)
        if X_GROUP > 0 and not PARTED:
            row_ahead = row_factor(x_scales, base + STEP, row_at, rows, end, X_GROUP)
        place_in_row = step * BYTES + element
        if EVEN:
            packed = tl.load(codes_rows[:, None] + place_in_row[None, :])
        else:
            packed = tl.load(codes_rows[:, None] + place_in_row[None, :], mask=(place_in_row < row_bytes)[None, :], other=0)
        if not WHOLE:
            counted = tl.zeros((TILE_N, TILE_ROWS), tl.int32)
        for part in tl.static_range(PARTS):
            if PARTS == 1:
                column = base + element
            else:
                column = base + (element // LANE) * 64 + part * LANE + element % LANE
            if EVEN:
                values = tl.load(x_rows[None, :] + column[:, None], mask=row_inside[None, :], other=0)
            else:
                values = tl.load(x_rows[None, :] + column[:, None], mask=row_inside[None, :] & (column < k)[:, None], other=0)
            if part == 0:
                numbers = _bytes(packed, 0, BITS, ASM)
            elif part == 1:
                numbers = _bytes(packed, 1, BITS, ASM_HIGH)
            else:
                numbers = _bytes(packed, part, BITS, None)
            counted = tl.dot(numbers, values, counted, out_dtype=tl.int32)
            if PARTED:
                some = counted.to(tl.float32)
                if GROUP > 0:
                    some *= n_factor(scales, base + part * LANE, n_at, n_at, n, end, GROUP, False)
                if X_GROUP > 0:
                    some *= row_factor(x_scales, base + part * LANE, row_at, rows, end, X_GROUP)
                total += some
                counted = tl.zeros((TILE_N, TILE_ROWS), tl.int32)
        if not (WHOLE or PARTED):
            some = counted.to(tl.float32)
            if GROUP > 0:
                some *= by_n
                by_n = n_ahead
            if X_GROUP > 0:
                some *= by_row
                by_row = row_ahead
            total += some
    if WHOLE:
        total = counted.to(tl.float32)
    if SPLIT > 1:
        at = row_at.to(tl.int64)[None, :] * n + n_at[:, None]
        last, total = gathered(total, parts, arrivals, at, row_inside[None, :] & n_inside[:, None], rows.to(tl.int64) * n, n_tile, SPLIT)
        if last:
            whole_scaled(total, x_scales, scales, offsets, sums, bias, residual, y, rows, n, spans, row_at, n_at, GROUP, X_GROUP)
    else:
        whole_scaled(total, x_scales, scales, offsets, sums, bias, residual, y, rows, n, spans, row_at, n_at, GROUP, X_GROUP)


@triton.jit
def whole_scaled(total, x_scales, scales, offsets, sums, bias, residual, y, rows, n, spans, row_at, n_at, GROUP: tl.constexpr, X_GROUP: tl.constexpr):
    """Scales that hold for all of K, offsets times sums of x, then bias and residual."""
    row_inside, n_inside = row_at < rows, n_at < n
    if GROUP == 0:
        total *= scale_at(scales, n_at, n_inside)[:, None]
    if X_GROUP == 0:
        total *= tl.load(x_scales + row_at, mask=row_inside, other=0.0)[None, :]
    if offsets is not None:
        for span in range(spans):
            stood_for = tl.load(sums + row_at * spans + span, mask=row_inside, other=0.0)
            total += tl.load(offsets + span * n + n_at, mask=n_inside, other=0.0)[:, None] * stood_for[None, :]
    finish(y, bias, residual, total, n_at, row_at, rows, n)


def multiply(given: Rounded, weight: GpuWeight, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None,
             tile: Tile | None = None, narrow: bool = False) -> torch.Tensor:
    """[rows, n] float32, or bfloat16 where `narrow` = x W^T + bias + residual, of rounded x."""
    rows, device = len(given.codes), given.codes.device
    tile = tile or plan(weight, rows, gpu(device))
    y = empty(rows, weight.n, device, narrow)
    if not rows:
        return y
    parts, arrivals = workspace(given.codes, rows, weight.n, tile, weight.counters)
    multiply_int8[grid(rows, weight.n, tile)](
        given.codes, given.scales, weight.codes, weight.scales, weight.offsets, given.sums, bias, residual, y, parts, arrivals, rows, weight.n, weight.k,
        weight.codes.shape[1], 0 if given.sums is None else given.sums.shape[1], num_warps=tile.warps, num_stages=tile.stages,
        **constants(weight, given.group, tile))
    return y


def constants(weight: GpuWeight, group: int, tile: Tile) -> dict[str, object]:
    """What the kernel is compiled for."""
    nibbles = weight.bits == 4 and not INTERPRETED
    signed = [code & 0xFF for code in range(-8, 8)]
    return {"BITS": weight.bits, "GROUP": weight.group, "X_GROUP": group, "ASM": _nibbles.byte_table(signed, 0) if nibbles else None,
            "ASM_HIGH": _nibbles.byte_table(signed, 1) if nibbles else None, "EVEN": even((weight.k,), tile.k), "SPLIT": tile.split, "TILE_N": tile.n,
            "TILE_ROWS": tile.rows, "STEP": tile.k, "BAND": BAND}
