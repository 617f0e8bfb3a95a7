"""Rounding inside kernels, to the same bits on every GPU and in Triton's interpreter (whose own casts to bfloat16 cut off, and whose products read
bfloat16 as integers: there DOT is float32)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
DOT: Any = tl.float32 if INTERPRETED else tl.bfloat16  # what matrix units are given


@triton.jit
def to_bf16(x):
    """float32 -> bfloat16, ties to even; NaN stays NaN."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(x != x, 0x7FC0, rounded).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def stored(x, WIDE: tl.constexpr):
    """float32 as a buffer holds it: float32 where WIDE, else bfloat16."""
    if WIDE:
        return x
    else:
        return to_bf16(x)


@triton.jit
def whole(x):
    """The nearest whole number, ties to even, for |x| < 2^22: beyond 1.5 * 2^23 float32 has no fractions."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def to_e4m3(x):
    """float32 -> codes (uint8) of FP8 E4M3 (OFP8 1.0, section 5), ties to even; beyond 448 saturates, NaN stays NaN."""
    size = tl.minimum(tl.abs(x), 448.0)
    bits = size.to(tl.uint32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960     # the exponent's bias is 7 instead of 127
    code = tl.where(size < 0.015625, whole(size * 512.0).to(tl.uint32), normal)
    code = tl.where(x != x, 0x7F, code) | ((x.to(tl.uint32, bitcast=True) >> 24) & 0x80)
    return code.to(tl.uint8)


@triton.jit
def from_e4m3(code):
    """Codes (uint8) of FP8 E4M3 -> float32, exact: the bits of a float32 whose exponent is 120 too small."""
    wide = code.to(tl.uint32)
    value = (((wide & 0x80) << 24) | ((wide & 0x7F) << 20)).to(tl.float32, bitcast=True) * 1329227995784915872903807060280344576.0
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), value)


@triton.jit
def tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


def wide(x: torch.Tensor) -> bool:
    """Whether a buffer holds float32."""
    return x.dtype == torch.float32


def power(count: int, least: int = 1) -> int:
    """The smallest power of two that is no smaller than both."""
    return max(least, 1 << max(count - 1, 0).bit_length())


def warps(block: int) -> int:
    """Warps of a program that works on so many numbers at once, 8 or more for a thread."""
    return min(max(block // 256, 1), 16)
