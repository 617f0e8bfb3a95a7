"""Balanced and rotated heads: what 8-bit caches store as keys, and the queries that meet them (cache.Tuning, kernels/_cache_codes.py)."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from ...cache import rotation
from ._rounding import power, stored, wide

ROWS, STEP = 16, 32  # rows of a program; columns of a head that it takes at a time


@triton.jit
def _turn(x, out, mean, factor, matrix, rows, heads, group, DIM: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
          SHIFTED: tl.constexpr, WIDE: tl.constexpr):
    """Program (rows, head): (x - mean) * factor, times the matrix."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    d = tl.arange(0, D)
    start = (row.to(tl.int64) * heads + head) * DIM
    of_head = head // group * DIM
    total = tl.zeros([ROWS, D], tl.float32)
    for first in range(0, DIM, STEP):
        c = first + tl.arange(0, STEP)
        values = tl.load(x + start[:, None] + c[None, :], mask=(row < rows)[:, None] & (c < DIM)[None, :], other=0.0).to(tl.float32)
        if SHIFTED:
            values = values - tl.load(mean + of_head + c, mask=c < DIM, other=0.0)[None, :]
        values = values * tl.load(factor + of_head + c, mask=c < DIM, other=0.0)[None, :]
        part = tl.load(matrix + c[:, None] * DIM + d[None, :], mask=(c < DIM)[:, None] & (d < DIM)[None, :], other=0.0)
        total = tl.dot(values, part, total, input_precision="ieee")
    tl.store(out + start[:, None] + d[None, :], stored(total, WIDE), mask=(row < rows)[:, None] & (d < DIM)[None, :])


def turn(x: torch.Tensor, out: torch.Tensor, mean: torch.Tensor | None, factor: torch.Tensor, matrix: torch.Tensor, heads: int) -> None:
    """out [rows, heads * dim] = (x - mean) * factor, rotated by `matrix` float32 [dim, dim]; mean and factor float32 [kv_heads, dim]."""
    kv_heads, dim = factor.shape
    if len(x):
        _turn[(triton.cdiv(len(x), ROWS), heads)](x, out, factor if mean is None else mean, factor, matrix, len(x), heads, heads // kv_heads, DIM=dim,
                                                  D=power(dim, 16), ROWS=ROWS, STEP=STEP, SHIFTED=mean is not None, WIDE=wide(out), num_warps=4)


def matrix_of(dim: int) -> np.ndarray:
    """float32 [dim, dim] of the rotation: Walsh-Hadamard in blocks of the largest power of two that divides dim; symmetric, its own inverse."""
    block = dim & -dim
    found: np.ndarray = np.kron(np.eye(dim // block), rotation(block)).astype(np.float32)
    return found
