"""Rotary positions (arXiv 2104.09864): pairs (i, i + rotary / 2) of each head, by a table of cosines and sines."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._rounding import power, stored, wide


@triton.jit
def rotated(x, table, position, d, DIM: tl.constexpr, ROTARY: tl.constexpr):
    """float32 [lanes]: the head that starts at x, rotated; d are the lanes."""
    half = ROTARY // 2
    inside = d < DIM
    turned = d < ROTARY
    values = tl.load(x + d, mask=inside, other=0.0).to(tl.float32)
    partner = tl.load(x + tl.where(d < half, d + half, d - half), mask=turned, other=0.0).to(tl.float32)
    angle = table + position.to(tl.int64) * ROTARY + d % half
    cos = tl.load(angle, mask=turned, other=1.0)
    sin = tl.load(angle + half, mask=turned, other=0.0)
    return values * cos + tl.where(d < half, -partner, partner) * sin


@triton.jit
def _rope(x, out, table, positions, heads, DIM: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0)
    start = (row.to(tl.int64) * heads + tl.program_id(1)) * DIM
    d = tl.arange(0, D)
    tl.store(out + start + d, stored(rotated(x + start, table, tl.load(positions + row), d, DIM, ROTARY), WIDE), mask=d < DIM)


def rope(x: torch.Tensor, out: torch.Tensor, table: torch.Tensor, positions: torch.Tensor, heads: int, head_dim: int, rotary: int) -> None:
    """out [rows, heads * head_dim]: x rotated by `positions` int32 [rows]; table float32 [positions, rotary], cosines before sines. Not in place: the two
    numbers of a pair are read by different threads."""
    if len(x):
        _rope[(len(x), heads)](x, out, table, positions, heads, DIM=head_dim, D=power(head_dim), ROTARY=rotary, WIDE=wide(out), num_warps=1)
