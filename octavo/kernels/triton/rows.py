"""Activations rounded to int8 or FP8 E4M3, row by row, alone or right after their norm; and sums of runs of columns, which zero points meet.

A program has one run of one row (or the whole row), so no row knows of another. Scales are the largest magnitude over 127 or 448, in float32, as
qtensor.quantize makes them; codes are x / scale to nearest, ties to even. A run with NaN or infinity gets NaN as its scale and zeros as codes, which makes
its row of every product NaN and no other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ._rounding import power, to_bf16, to_e4m3, warps, whole


@dataclass(frozen=True)
class Rounded:
    """codes int8 or uint8 (E4M3) [rows, k]; scales float32 [runs, rows] (so that the rows of a tile lie together), of `group` columns each, 0: one for the row;
    sums float32 [rows, spans] of codes times scales, or None."""

    codes: torch.Tensor
    scales: torch.Tensor
    group: int
    sums: torch.Tensor | None = None


@triton.jit
def _codes(values, inside, fixed, FORMAT: tl.constexpr, FIXED: tl.constexpr):
    """(codes [runs, run], scales [runs]) of float32 values [runs, run]; each run shares a scale: `fixed`, or the one that just holds the largest."""
    LARGEST: tl.constexpr = 127.0 if FORMAT == "int8" else 448.0
    sound = tl.max((~(tl.abs(values) < float("inf")) & inside).to(tl.int32), axis=1) == 0
    values = tl.where(sound[:, None] & inside, values, 0.0)
    largest = tl.max(tl.abs(values), axis=1)
    if FIXED:
        scale = tl.zeros_like(largest) + fixed
        divided = values * tl.div_rn(tl.full((), 1.0, tl.float32), fixed)
    else:
        scale = tl.div_rn(largest, tl.zeros_like(largest) + LARGEST)
        divided = tl.div_rn(values, tl.where(scale == 0.0, 1.0, scale)[:, None] + tl.zeros_like(values))
    if FORMAT == "int8":
        codes = whole(tl.minimum(tl.maximum(divided, -127.0), 127.0)).to(tl.int8)
    else:
        codes = to_e4m3(divided)
    return codes, tl.where(sound, scale, float("nan"))


@triton.jit
def quantize(x, codes, scales, k, run, fixed, x_stride, FORMAT: tl.constexpr, FIXED: tl.constexpr, BLOCK: tl.constexpr):
    """Program (row, run): `run` columns that share a scale."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    at = tl.arange(0, BLOCK)[None, :]
    column = group * run + at
    inside = (at < run) & (column < k)
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    found, scale = _codes(values, inside, fixed, FORMAT, FIXED)
    tl.store(codes + row * k + column, found, mask=inside)
    tl.store(scales + group.to(tl.int64) * tl.num_programs(0) + row + tl.arange(0, 1), scale)


@triton.jit
def normed_quantize(x, gain, y, codes, scales, k, runs, eps, offset, x_stride, FORMAT: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr):
    """Program (row): x / sqrt(mean(x^2) + eps) * (offset + gain), into `y` where that is wanted too, and rounded in runs of RUN columns, a power of
    two, at most BLOCK."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < k
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    size = tl.sqrt(tl.sum(values * values, axis=0) / k + eps)
    values = values / size * (offset + tl.load(gain + column, mask=inside, other=0.0))
    if y is not None:
        if y.dtype.element_ty == tl.float32:
            tl.store(y + row * k + column, values, mask=inside)
        else:
            tl.store(y + row * k + column, to_bf16(values), mask=inside)
    RUNS: tl.constexpr = BLOCK // RUN
    found, scale = _codes(tl.reshape(values, (RUNS, RUN)), tl.reshape(inside, (RUNS, RUN)), 0.0, FORMAT, False)
    tl.store(codes + row * k + column, tl.reshape(found, (BLOCK,)), mask=inside)
    group = tl.arange(0, RUNS)
    tl.store(scales + group.to(tl.int64) * tl.num_programs(0) + row, scale, mask=group < runs)


@triton.jit
def _span_sums(x, scales, sums, k, span, spans, group, x_stride, FORMAT: tl.constexpr, BLOCK: tl.constexpr):
    """Program (row, span): the sum of `span` columns, in bfloat16 as products read them, or of codes times scales."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, span, BLOCK):
        within = start + tl.arange(0, BLOCK)
        column = at * span + within
        inside = (within < span) & (column < k)
        values = tl.load(x + row * x_stride + column, mask=inside, other=0)
        if FORMAT == "float":
            values = to_bf16(values.to(tl.float32)).to(tl.float32)
        elif FORMAT == "int8":
            values = values.to(tl.float32) * tl.load(scales + (column // group).to(tl.int64) * tl.num_programs(0) + row, mask=inside, other=0.0)
        else:
            wide = values.to(tl.int32)
            values = (((wide & 0x80) << 24) | ((wide & 0x7F) << 20)).to(tl.float32, bitcast=True) * 1329227995784915872903807060280344576.0
            values *= tl.load(scales + (column // group).to(tl.int64) * tl.num_programs(0) + row, mask=inside, other=0.0)
        total += values
    tl.store(sums + row * spans + at, tl.sum(total, axis=0))


def span_sums(x: torch.Tensor, span: int) -> torch.Tensor:
    """float32 [rows, ceil(k / span)]: sums over each `span` columns of x [rows, k], rounded to bfloat16 first."""
    return _summed(x, None, span, "float")


def rounded_sums(given: Rounded, span: int) -> torch.Tensor:
    """The same of the numbers that codes and scales stand for."""
    return _summed(given.codes, given, span, "int8" if given.codes.dtype == torch.int8 else "fp8e4m3")


def _summed(x: torch.Tensor, given: Rounded | None, span: int, format: str) -> torch.Tensor:
    rows, k = x.shape
    spans = -(-k // span)
    sums = torch.empty((rows, spans), dtype=torch.float32, device=x.device)
    if rows:
        block = min(power(span), 1024)
        _span_sums[(rows, spans)](x, None if given is None else given.scales, sums, k, span, spans, k if given is None else given.group or k,
                                  x.stride(0), FORMAT=format, BLOCK=block, num_warps=warps(block))
    return sums


def rounded(x: torch.Tensor, format: str, group: int = 0, fixed: float = 0.0) -> Rounded:
    """x [rows, k] float32 or bfloat16 as "int8" or "fp8e4m3", with a scale for each `group` columns (0: each row), or `fixed` for all."""
    rows, k = x.shape
    run = group if 0 < group < k else k
    runs = -(-k // run)
    codes, scales = _empty(x, format, runs)
    if rows:
        block = power(run)
        quantize[(rows, runs)](x, codes, scales, k, run, fixed, x.stride(0), FORMAT=format, FIXED=fixed > 0, BLOCK=block, num_warps=warps(block))
    return Rounded(codes, scales, run if runs > 1 else 0)


def normed(x: torch.Tensor, gain: torch.Tensor, eps: float, format: str, group: int = 0, offset: float = 0.0, y: torch.Tensor | None = None) -> Rounded:
    """`rounded` of x / sqrt(mean(x^2) + eps) * (offset + gain), which goes into y [rows, k] (float32 or bfloat16) too where given. group: 0 or a power of
    two."""
    rows, k = x.shape
    run = group if 0 < group < k else 0
    runs = -(-k // run) if run else 1
    codes, scales = _empty(x, format, runs)
    if rows:
        block = power(k)
        normed_quantize[(rows,)](x, gain, y, codes, scales, k, runs, eps, offset, x.stride(0), FORMAT=format, RUN=run or block, BLOCK=block,
                                num_warps=warps(block))
    return Rounded(codes, scales, run)


def _empty(x: torch.Tensor, format: str, runs: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.empty(tuple(x.shape), dtype=torch.int8 if format == "int8" else torch.uint8, device=x.device)
    return codes, torch.empty((runs, len(x)), dtype=torch.float32, device=x.device)
