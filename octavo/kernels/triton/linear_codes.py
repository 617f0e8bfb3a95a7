"""Weights in few bits and float activations: y = x W^T on the tensor cores, codes widened to bfloat16 in registers, x rounded to bfloat16, sums in float32.

Integer codes are exact in bfloat16, so scales meet the sum over their columns wherever these are whole tiles (MODE):

    row    one scale per row: after everything
    step   groups of a multiple of 64 columns (of 16 with bytes): after each step over K
    part   groups of 32 in nibbles, of 16 or 32 in two bits: the low and the high nibbles of a block are groups of their own
    run    smaller groups of a power of two: scale times code in registers, exact where the scale is a power of two or FP8 and the code has few digits (MXFP4,
           NVFP4), else rounded to bfloat16 once more
    each   any other group: as `run`, one scale read for each code

Offsets (zero points) meet sums of x over the same columns, which `inputs` makes once for all weights. 16-bit weights are the same kernel without scales; 32-bit
ones multiply in full float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ... import formats
from ..op import Problem
from . import _nibbles
from ._rounding import INTERPRETED, to_bf16
from .rows import span_sums
from .tiles import BAND, INTERPRETER, Gpu, Tile, bucket, empty, even, finish, gathered, gpu, grid, place, usual, within, workspace

if TYPE_CHECKING:
    from .weights import GpuWeight

BLOCK = 64  # columns that are packed together
SMALLEST_EXPONENT = tl.constexpr(0x00400000)  # 2^-127, which zero stands for (E8M0: formats/e8m0.py), has no exponent of its own in float32
WIDEST_STEP = {2: 256, 4: 256, 8: 128, 16: 64, 32: 32}  # columns of a step over K, by bits: 64 to 128 bytes of a row


def supports(problem: Problem, capability: tuple[int, int]) -> str | None:
    """Every weight but a trellis, with float activations."""
    if problem.activation is not None and problem.activation.quantized:
        return f"weights in few bits meet float activations here, not {problem.activation.format}"
    if problem.weight is not None and formats.get(problem.weight.format).kind == "trellis":
        return "no GPU kernel walks a trellis yet; the CPU's do"
    if capability < (8, 0):
        return f"the kernels multiply bfloat16, which starts with Ampere (compute capability 8.0), not {capability[0]}.{capability[1]}"
    return None


@dataclass(frozen=True)
class Inputs:
    """x [rows, k], and its sums over runs of columns float32 [rows, runs], or None where no offsets want them."""

    x: torch.Tensor
    sums: torch.Tensor | None


def wants(weight: GpuWeight, rows: int) -> tuple[object, ...]:
    """What `inputs` makes for the weight; equal for weights that can share it."""
    return "codes", weight.kind == "fp32", sums_span(weight, rows)


def inputs(x: torch.Tensor, weight: GpuWeight) -> Inputs:
    """x as multiply reads it: with few rows as it is (rounded on the way), with many in bfloat16, since every tile of n reads it again."""
    rows = len(x)
    if weight.kind != "fp32" and x.dtype == torch.float32 and rows > 16:
        x = x.to(torch.bfloat16)
    span = sums_span(weight, rows)
    return Inputs(x, span_sums(x, span) if span else None)


def sums_span(weight: GpuWeight, rows: int) -> int:
    """Columns that each sum of x is over, 0 where none are wanted."""
    if weight.offsets is None:
        return 0
    tile, mode = plan(weight, rows, INTERPRETER)
    return {"row": weight.k, "step": tile.k, "part": weight.group}.get(mode, 0)


def plan(weight: GpuWeight, rows: int, on: Gpu) -> tuple[Tile, str]:
    """The usual tile for so many rows on a GPU, and how scales are applied. The step over K and the mode are the same on all GPUs."""
    mode = mode_of(weight, rows)
    size, bits = bucket(rows), weight.bits
    step = WIDEST_STEP[bits]
    if mode == "step":
        step = min(step, weight.group & -weight.group)
    elif mode == "part":
        step = BLOCK
    elif mode in ("run", "each"):
        step = min(step, 128)
    if bits == 32:
        return Tile(32, min(size, 32), step, 1, 4, 2), mode
    step = step if size <= 32 else min(step, 128)
    tile = usual(weight.n, weight.k, rows, step, bits, 4 if size <= 16 else 2, on)
    if bits == 2 and tile.rows > 64:  # Triton gives each of the four parts sums of its own, which Blackwell's tensor memory holds for 64 rows
        tile = replace(tile, rows=64)
    return tile, mode


def mode_of(weight: GpuWeight, rows: int) -> str:
    if weight.scales is None or not weight.group:
        return "row"
    lane = BLOCK if weight.bits == 8 else BLOCK * weight.bits // 8
    power = weight.group & (weight.group - 1) == 0
    if weight.group % BLOCK == 0 or (weight.bits == 8 and power and weight.group >= 32):
        return "step"
    if weight.bits < 8 and power and weight.group >= lane and not (weight.exact and rows > 32):
        return "part"
    return "run" if power else "each"


def assembly(weight: GpuWeight) -> tuple[str, ...]:
    """PTX that widens each part of the packed bytes, none where Triton does it."""
    if INTERPRETED:
        return ()
    if weight.kind == "ints4":
        return _nibbles.integers(0), _nibbles.integers(1)
    if weight.kind == "table":
        if weight.spec.format in ("mxfp4", "nvfp4"):
            return _nibbles.e2m1(0), _nibbles.e2m1(1)
        values = weight.table.tolist() if weight.table is not None else []
        return _nibbles.table(values, 0), _nibbles.table(values, 1)
    if weight.kind in ("fp8e4m3", "fp8e5m2"):
        return (_nibbles.small_float(4 if weight.kind == "fp8e4m3" else 5),)
    return ()


def pack_of(weight: GpuWeight) -> int:
    """Bytes that `assembly` takes at a time."""
    return 4 if weight.kind == "table" and weight.spec.format not in ("mxfp4", "nvfp4") else 2


def scale_values(scales: torch.Tensor) -> torch.Tensor:
    """float32 scales of any stored type."""
    if scales.dtype == torch.uint8:
        return (scales.to(torch.int32) << 23).clamp(min=SMALLEST_EXPONENT.value).view(torch.float32)
    return scales.to(torch.float32)


@triton.jit
def scale_at(scales, at, inside):
    """float32 scales of any stored type, 0 outside (of exponents 2^-127)."""
    found = tl.load(scales + at, mask=inside, other=0)
    if scales.dtype.element_ty == tl.uint8:
        return tl.maximum(found.to(tl.int32) << 23, SMALLEST_EXPONENT).to(tl.float32, bitcast=True)
    else:
        return found.to(tl.float32)


@triton.jit
def _operand(x, WIDE: tl.constexpr):
    """Floats as the matrix units take them; WIDE: rounded all the same, but kept as float32, which is what the interpreter multiplies."""
    if WIDE:
        return to_bf16(x.to(tl.float32)).to(tl.float32)
    else:
        return x.to(tl.bfloat16)


@triton.jit
def _integers(codes, WIDE: tl.constexpr):
    """int8, which bfloat16 holds exactly. Without a step over float32: Triton's layout pass would stop at it."""
    if WIDE:
        return codes.to(tl.float32)
    else:
        return codes.to(tl.bfloat16)


@triton.jit
def _widened(codes, table, PART: tl.constexpr, KIND: tl.constexpr, ASM: tl.constexpr, PACK: tl.constexpr, WIDE: tl.constexpr):
    """The stored numbers of one part of a tile of packed codes, as matrix units take them."""
    if KIND == "fp32":
        return codes
    elif KIND == "bf16":
        return _operand(codes, WIDE)
    elif ASM is not None:
        if KIND == "table" and PACK == 4:
            return tl.inline_asm_elementwise(ASM, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
        else:
            return tl.inline_asm_elementwise(ASM, "=r,h", [codes], dtype=tl.bfloat16, is_pure=True, pack=2)
    elif KIND == "ints4":
        return _integers(((codes >> (4 * PART)) & 15).to(tl.int8) - 8, WIDE)
    elif KIND == "ints2":
        return _integers(((codes >> (2 * PART)) & 3).to(tl.int8) - 2, WIDE)
    elif KIND == "ints8":
        return _integers(codes, WIDE)
    elif KIND == "table":
        return _operand(tl.load(table + ((codes >> (4 * PART)) & 15).to(tl.int32)), WIDE)
    else:
        wide = codes.to(tl.int32)
        sign = (wide & 0x80) << 24
        if KIND == "fp8e4m3":
            return _operand((sign | ((wide & 0x7F) << 20)).to(tl.float32, bitcast=True) * 1329227995784915872903807060280344576.0, WIDE)
        else:
            return _operand((sign | ((wide & 0x7F) << 21)).to(tl.float32, bitcast=True) * 5192296858534827628530496329220096.0, WIDE)


@triton.jit
def accumulated(x_rows, row_inside, codes_rows, scales, offsets, sums_rows, table, n_at, n, k, groups, runs, row_bytes, first, last,
                KIND: tl.constexpr, BITS: tl.constexpr, MODE: tl.constexpr, GROUP: tl.constexpr, ASM: tl.constexpr, ASM_HIGH: tl.constexpr,
                PACK: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, TILE_N: tl.constexpr, TILE_ROWS: tl.constexpr, STEP: tl.constexpr):
    """float32 [TILE_N, TILE_ROWS]: the product over steps first .. last - 1 of K. x_rows, codes_rows, sums_rows: where each row begins."""
    PARTS: tl.constexpr = 8 // BITS if BITS < 8 else 1
    BYTES: tl.constexpr = STEP // PARTS          # codes' elements of a step
    LANE: tl.constexpr = 64 // PARTS             # elements that lie together in a block of 64 columns
    RUN: tl.constexpr = GROUP if GROUP < LANE else LANE  # of which so many share a scale
    LIFT: tl.constexpr = 64.0 if KIND == "ints4" and ASM is not None else 1.0  # _nibbles.INTEGERS_LOW
    element = tl.arange(0, BYTES)
    n_inside = n_at < n
    total = tl.zeros((TILE_N, TILE_ROWS), tl.float32)
    if MODE == "step":
        factor = scale_at(scales, (first * STEP // GROUP) * n + n_at, within(n_at, n, first < last)) * LIFT
    for step in range(first, last):
        base = step * STEP
        if MODE == "step":  # the next step's, since Triton reads ahead only what products take
            factor_ahead = scale_at(scales, ((base + STEP) // GROUP) * n + n_at, within(n_at, n, step + 1 < last)) * LIFT
        byte = step * BYTES + element
        if EVEN:
            codes = tl.load(codes_rows[:, None] + byte[None, :])
        else:
            codes = tl.load(codes_rows[:, None] + byte[None, :], mask=(byte < row_bytes)[None, :], other=0)
        partial = tl.zeros((TILE_N, TILE_ROWS), tl.float32)
        for part in tl.static_range(PARTS):
            if PARTS == 1:
                column = base + element
            else:
                column = base + (element // LANE) * 64 + part * LANE + element % LANE
            if EVEN:
                x = tl.load(x_rows[None, :] + column[:, None], mask=row_inside[None, :], other=0.0)
            else:
                x = tl.load(x_rows[None, :] + column[:, None], mask=row_inside[None, :] & (column < k)[:, None], other=0.0)
            if KIND != "fp32":
                x = _operand(x, WIDE)
            else:
                x = x.to(tl.float32)
            if part == 0:
                numbers = _widened(codes, table, 0, KIND, ASM, PACK, WIDE)
            elif part == 1:
                numbers = _widened(codes, table, 1, KIND, ASM_HIGH, PACK, WIDE)
            else:
                numbers = _widened(codes, table, part, KIND, None, PACK, WIDE)
            if MODE == "row":
                total = tl.dot(numbers, x, total, input_precision="ieee")
            elif MODE == "step":
                partial = tl.dot(numbers, x, partial, input_precision="ieee")
            elif MODE == "part":
                group = step * (64 // GROUP) + part * LANE // GROUP
                there = within(n_at, n, group < groups)
                total += tl.dot(numbers, x, input_precision="ieee") * (scale_at(scales, group * n + n_at, there) * LIFT)[:, None]
                if offsets is not None:
                    sums = tl.load(sums_rows + tl.minimum(group, groups - 1), mask=row_inside, other=0.0)
                    total += tl.load(offsets + group * n + n_at, mask=there, other=0.0)[:, None] * sums[None, :]
            elif MODE == "run":
                run = tl.arange(0, BYTES // RUN) * RUN
                if PARTS == 1:
                    group = (base + run) // GROUP
                else:
                    group = (base + (run // LANE) * 64 + part * LANE + run % LANE) // GROUP
                at = group[None, :] * n + n_at[:, None]
                there = n_inside[:, None] & (group < groups)[None, :]
                numbers = tl.reshape(numbers, (TILE_N, BYTES // RUN, RUN))
                factor = (scale_at(scales, at, there) * LIFT)[:, :, None]
                if offsets is not None:
                    shifted = numbers.to(tl.float32) * factor + tl.load(offsets + at, mask=there, other=0.0)[:, :, None]
                    numbers = _operand(shifted, WIDE)
                elif WIDE or scales.dtype.element_ty == tl.float16 or scales.dtype.element_ty == tl.float32:
                    numbers = _operand(numbers.to(tl.float32) * factor, WIDE)
                else:  # both factors are exact in bfloat16: one rounding, as above
                    numbers = numbers * factor.to(tl.bfloat16)
                total = tl.dot(tl.reshape(numbers, (TILE_N, BYTES)), x, total, input_precision="ieee")
            else:
                group = column // GROUP
                at = group[None, :] * n + n_at[:, None]
                there = n_inside[:, None] & (group < groups)[None, :]
                scaled = numbers.to(tl.float32) * (scale_at(scales, at, there) * LIFT)
                if offsets is not None:
                    scaled += tl.load(offsets + at, mask=there, other=0.0)
                total = tl.dot(_operand(scaled, WIDE), x, total, input_precision="ieee")
        if MODE == "step":
            total += partial * factor[:, None]
            factor = factor_ahead
            if offsets is not None:
                sums = tl.load(sums_rows + step, mask=row_inside, other=0.0)
                total += tl.load(offsets + (base // GROUP) * n + n_at, mask=n_inside, other=0.0)[:, None] * sums[None, :]
    return total


@triton.jit
def scaled(tile, scales, offsets, sums_rows, n_at, n, row_inside, outer, MODE: tl.constexpr, KIND: tl.constexpr, ASM: tl.constexpr):
    """What is left to do once K is through: one scale per row, the outer factor."""
    LIFT: tl.constexpr = 64.0 if KIND == "ints4" and ASM is not None else 1.0
    if MODE == "row" and scales is not None:
        tile *= (scale_at(scales, n_at, n_at < n) * LIFT)[:, None]
        if offsets is not None:
            sums = tl.load(sums_rows, mask=row_inside, other=0.0)
            tile += tl.load(offsets + n_at, mask=n_at < n, other=0.0)[:, None] * sums[None, :]
    return tile * outer


@triton.jit(do_not_specialize=["rows"])
def multiply_codes(x, codes, scales, offsets, sums, table, bias, residual, y, parts, arrivals, rows, n, k, groups, runs, x_stride, row_bytes, outer,
                   KIND: tl.constexpr, BITS: tl.constexpr, MODE: tl.constexpr, GROUP: tl.constexpr, ASM: tl.constexpr, ASM_HIGH: tl.constexpr,
                   PACK: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr, TILE_N: tl.constexpr, TILE_ROWS: tl.constexpr,
                   STEP: tl.constexpr, BAND: tl.constexpr):
    row_tile, n_tile = place(rows, n, TILE_N, TILE_ROWS, BAND)
    row_at = row_tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    n_at = n_tile * TILE_N + tl.arange(0, TILE_N)
    row_inside = row_at < rows
    if sums is not None:
        sums_rows = sums + row_at * runs
    else:
        sums_rows = row_at
    steps = tl.cdiv(k, STEP)
    each = tl.cdiv(steps, SPLIT)
    first = tl.program_id(1) * each
    tile = accumulated(x + row_at.to(tl.int64) * x_stride, row_inside, codes + tl.minimum(n_at, n - 1).to(tl.int64) * row_bytes, scales, offsets, sums_rows,
                       table, n_at, n, k, groups, runs, row_bytes, first, tl.minimum(first + each, steps), KIND, BITS, MODE, GROUP, ASM, ASM_HIGH, PACK, WIDE,
                       EVEN, TILE_N, TILE_ROWS, STEP)
    if SPLIT > 1:
        at = row_at.to(tl.int64)[None, :] * n + n_at[:, None]
        size = rows.to(tl.int64) * n
        last, tile = gathered(tile, parts, arrivals, at, row_inside[None, :] & (n_at < n)[:, None], size, n_tile, SPLIT)
        if last:
            finish(y, bias, residual, scaled(tile, scales, offsets, sums_rows, n_at, n, row_inside, outer, MODE, KIND, ASM), n_at, row_at, rows, n)
    else:
        finish(y, bias, residual, scaled(tile, scales, offsets, sums_rows, n_at, n, row_inside, outer, MODE, KIND, ASM), n_at, row_at, rows, n)


def multiply(given: Inputs, weight: GpuWeight, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None,
             tile: Tile | None = None, narrow: bool = False) -> torch.Tensor:
    """[rows, n] float32, or bfloat16 where `narrow` = x W^T + bias + residual. tile: another than the usual one; its step must be the plan's where
    `inputs` made sums."""
    x, rows = given.x, len(given.x)
    usual, mode = plan(weight, rows, gpu(x.device))
    tile = tile or usual
    y = empty(rows, weight.n, x.device, narrow)
    if not rows:
        return y
    text = assembly(weight)
    parts, arrivals = workspace(x, rows, weight.n, tile, weight.counters)
    multiply_codes[grid(rows, weight.n, tile)](
        x, weight.codes, weight.scales, weight.offsets, given.sums, weight.table, bias, residual, y, parts, arrivals, rows, weight.n, weight.k,
        0 if weight.scales is None else len(weight.scales), 0 if given.sums is None else given.sums.shape[1], x.stride(0), weight.codes.shape[1],
        weight.outer, num_warps=tile.warps, num_stages=tile.stages, **constants(weight, mode, tile, text))
    return y


def constants(weight: GpuWeight, mode: str, tile: Tile, text: tuple[str, ...]) -> dict[str, object]:
    """What the kernel is compiled for."""
    return {"KIND": weight.kind, "BITS": weight.bits, "MODE": mode, "GROUP": weight.group or 1, "ASM": text[0] if text else None,
            "ASM_HIGH": text[1] if len(text) > 1 else None, "PACK": pack_of(weight), "WIDE": INTERPRETED, "EVEN": even((weight.k,), tile.k),
            "SPLIT": tile.split, "TILE_N": tile.n, "TILE_ROWS": tile.rows, "STEP": tile.k, "BAND": BAND}
