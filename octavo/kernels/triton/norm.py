"""Root mean square norm of rows, or of each head of a row: a program for each, so that no row knows of another."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._rounding import power, stored, warps, wide


@triton.jit
def _rms_norm(x, gain, out, width, eps, offset, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    size = tl.sqrt(tl.sum(values * values, axis=0) / width + eps)
    factor = offset + tl.load(gain + at, mask=inside, other=0.0)
    tl.store(out + start + at, stored(values / size * factor, WIDE), mask=inside)


def rms_norm(x: torch.Tensor, gain: torch.Tensor, out: torch.Tensor, eps: float, offset: float = 0.0, groups: int = 1) -> None:
    """out [rows, width] = x / sqrt(mean(x^2) + eps) * (offset + gain) over each of `groups` equal parts of a row; gain float32 [width / groups]."""
    width = x.shape[1] // groups
    if len(x):
        block = power(width)
        _rms_norm[(len(x) * groups,)](x, gain, out, width, eps, offset, BLOCK=block, WIDE=wide(out), num_warps=warps(block))
