"""Heads of 4 bits into the cache: what kernels/_cache_codes.py does with NumPy, a program for each token and head.

A head of `dim` components lies in halves: byte j holds component j in its low nibble and component j + half in its high one, half = ceil(dim / 2), so that
attention reads two tiles of adjacent components. Of the first lead(dim) components of a key (8 bits) these are the upper four; their lower four follow, in
halves too. Beside the codes a word: bfloat16 scale (upper half) and offset; the sign says whether a key's jump was taken away.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from ...cache import PAGE
from .._cache_codes import LOST, RANGES
from ._rounding import power, to_bf16, whole

FEWER = tl.constexpr(RANGES[0] - RANGES[1])  # each range tried is so much narrower than the one before
LOST_WORD = tl.constexpr(LOST)


def half(count: int) -> int:
    return (count + 1) // 2


def nbytes(dim: int, leading: int) -> int:
    """Bytes of a head's codes."""
    return half(dim) + half(leading)


@triton.jit
def _bf16(x):
    return to_bf16(x).to(tl.float32)


@triton.jit
def _steps(x, scale, offset, most):
    """Codes of x, float32 whole numbers from 0 to most."""
    inverse = tl.where(scale != 0.0, tl.div_rn(tl.full((), 1.0, tl.float32), tl.where(scale != 0.0, scale, 1.0)), 0.0)
    return whole(tl.minimum(tl.maximum((x - offset) * inverse, 0.0), most))


@triton.jit
def _store4(x, jump, slots, codes, words, heads, DIM: tl.constexpr, LEAD: tl.constexpr, H: tl.constexpr, L: tl.constexpr, BYTES: tl.constexpr,
            PAGE: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Program (row, head). jump: of keys, or None."""
    HALF: tl.constexpr = (DIM + 1) // 2
    LOW: tl.constexpr = (LEAD + 1) // 2
    row, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    if slot >= 0:  # rows that only fill up a captured step have none
        j, m = tl.arange(0, H), tl.arange(0, L)
        start = x + (row.to(tl.int64) * heads + head) * DIM
        in_low, in_high = j < HALF, j < DIM - HALF
        low, high = tl.load(start + j, mask=in_low, other=0.0), tl.load(start + HALF + j, mask=in_high, other=0.0)
        first, second = tl.load(start + m, mask=m < LOW, other=0.0), tl.load(start + LOW + m, mask=m < LEAD - LOW, other=0.0)  # the leading ones again
        unsound = tl.max(tl.where(tl.abs(low) < float("inf"), 0, 1), axis=0) + tl.max(tl.where(tl.abs(high) < float("inf"), 0, 1), axis=0)
        low, high = tl.where(unsound == 0, low, 0.0), tl.where(unsound == 0, high, 0.0)
        first, second = tl.where(unsound == 0, first, 0.0), tl.where(unsound == 0, second, 0.0)
        near = 0
        if jump is not None:
            jump += head * DIM
            low_jump, high_jump = tl.load(jump + j, mask=in_low, other=0.0), tl.load(jump + HALF + j, mask=in_high, other=0.0)
            there = tl.sum((low - low_jump) * (low - low_jump), axis=0) + tl.sum((high - high_jump) * (high - high_jump), axis=0)
            taken = (there < tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)) & (unsound == 0)
            near = taken.to(tl.int32)
            low, high = tl.where(taken, low - low_jump, low), tl.where(taken, high - high_jump, high)
            first = tl.where(taken, first - tl.load(jump + m, mask=m < LOW, other=0.0), first)
            second = tl.where(taken, second - tl.load(jump + LOW + m, mask=m < LEAD - LOW, other=0.0), second)
        rest = in_low & (j >= LEAD)
        bottom = tl.minimum(tl.min(tl.where(rest, low, float("inf")), axis=0), tl.min(tl.where(in_high, high, float("inf")), axis=0))
        top = tl.maximum(tl.max(tl.where(rest, low, float("-inf")), axis=0), tl.max(tl.where(in_high, high, float("-inf")), axis=0))
        least = tl.min(tl.where(j < LEAD, low, float("inf")), axis=0)
        most = tl.max(tl.where(j < LEAD, low, float("-inf")), axis=0)
        middle, reach = 0.5 * bottom + 0.5 * top, 0.5 * top - 0.5 * bottom
        best, scale, offset = bottom, bottom, bottom
        low_codes, high_codes = low, high
        for attempt in tl.static_range(4):
            part = 1.0 - FEWER * attempt
            if SYMMETRIC:
                begin, end = tl.minimum(bottom * part, least), tl.maximum(top * part, most)
                now_scale = _bf16(tl.where(end > -begin, end, begin) * -0.125)
                now_offset = _bf16(-8.0 * now_scale)
            else:
                begin, end = tl.minimum(middle - reach * part, least), tl.maximum(middle + reach * part, most)
                now_scale = _bf16(tl.div_rn(0.5 * end, tl.full((), 7.5, tl.float32)) - tl.div_rn(0.5 * begin, tl.full((), 7.5, tl.float32)))
                now_offset = _bf16(begin)
            now_low, now_high = _steps(low, now_scale, now_offset, 15.0), _steps(high, now_scale, now_offset, 15.0)
            low_error, high_error = now_low * now_scale + now_offset - low, now_high * now_scale + now_offset - high
            error = tl.sum(tl.where(rest, low_error * low_error, 0.0), axis=0) + tl.sum(tl.where(in_high, high_error * high_error, 0.0), axis=0)
            if attempt == 0:
                best, scale, offset, low_codes, high_codes = error, now_scale, now_offset, now_low, now_high
            else:
                better = error < best
                best, scale, offset = tl.where(better, error, best), tl.where(better, now_scale, scale), tl.where(better, now_offset, offset)
                low_codes, high_codes = tl.where(better, now_low, low_codes), tl.where(better, now_high, high_codes)
        # so that codes are no smaller than x (_cache_codes._fit)
        size = tl.sum(tl.where(rest, low * low, 0.0), axis=0) + tl.sum(tl.where(in_high, high * high, 0.0), axis=0)
        met = tl.sum(tl.where(rest, low * (low_codes * scale + offset), 0.0), axis=0)
        met += tl.sum(tl.where(in_high, high * (high_codes * scale + offset), 0.0), axis=0)
        factor = tl.div_rn(size, tl.where(met == 0.0, 1.0, met))
        factor = tl.where((factor > 0.8) & (factor < 1.25) & (met != 0.0), factor, 1.0)
        scale = _bf16(scale * factor)
        if SYMMETRIC:
            offset = _bf16(-8.0 * scale)
        else:
            offset = _bf16(offset * factor)
        place = (slot // PAGE).to(tl.int64) * heads * PAGE + head * PAGE + slot % PAGE
        low_bytes, high_bytes = low_codes.to(tl.int32), high_codes.to(tl.int32)
        if LEAD > 0:
            low_bytes = tl.where(j < LEAD, _steps(low, scale * 0.0625, offset, 255.0).to(tl.int32) >> 4, low_bytes)
            first_bytes = _steps(first, scale * 0.0625, offset, 255.0).to(tl.int32) & 15
            second_bytes = tl.where(m < LEAD - LOW, _steps(second, scale * 0.0625, offset, 255.0).to(tl.int32) & 15, 0)
            tl.store(codes + place * BYTES + HALF + m, (first_bytes | (second_bytes << 4)).to(tl.uint8), mask=m < LOW)
        high_bytes = tl.where(in_high, high_bytes, 0)
        tl.store(codes + place * BYTES + j, (low_bytes | (high_bytes << 4)).to(tl.uint8), mask=in_low)
        word = (scale.to(tl.int32, bitcast=True) & -65536) | ((offset.to(tl.int32, bitcast=True) >> 16) & 65535) | (near << 31)
        tl.store(words + place, tl.where(unsound == 0, word, LOST_WORD))


def store4(x: torch.Tensor, slots: torch.Tensor, codes: torch.Tensor, words: torch.Tensor, dim: int, leading: int, symmetric: bool,
           jump: torch.Tensor | None = None) -> None:
    """x float32 [rows, heads * dim], turned already, into codes uint8 [pages, heads, PAGE, bytes] and words int32 [pages, heads, PAGE] at `slots` int32
    [rows] (below 0: nowhere). leading: how many components have 8 bits."""
    if len(x):
        heads = x.shape[1] // dim
        _store4[(len(x), heads)](x, jump, slots, codes, words, heads, DIM=dim, LEAD=leading, H=power(half(dim)), L=power(half(leading)),
                                 BYTES=codes.shape[-1], PAGE=PAGE, SYMMETRIC=symmetric, num_warps=1)


def unpacked(codes: np.ndarray, dim: int, leading: int) -> np.ndarray:
    """Codes [..., dim] from the bytes [..., bytes] of heads, of 8 bits the leading ones."""
    parts, low = codes[..., : half(dim)], codes[..., half(dim) :]
    found = np.concatenate([parts & 15, parts >> 4], axis=-1)[..., :dim]
    if leading:
        found[..., :leading] = found[..., :leading] << 4 | np.concatenate([low & 15, low >> 4], axis=-1)[..., :leading]
    return found
