"""Heads on their way to a cache of few bits: keys balanced and rotated, queries that meet them, values rotated (cache.Tuning, kernels/_cache_codes.py). Each
is one small matrix for each key-value head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from ...cache import lead, rotation
from ._rounding import power, stored, wide

ROWS, STEP = 16, 32  # rows of a program; columns of a head that it takes at a time


@dataclass(frozen=True)
class Turns:
    """What a layer's cache wants: float32 mean of keys [heads, dim]; matrices of keys and of queries [heads, dim, dim], whose product with the other one's
    transpose is the identity. jump [heads, dim]: what 4-bit keys of a text's first token are stored without (cache.arranged), else None."""

    mean: torch.Tensor
    keys: torch.Tensor
    queries: torch.Tensor
    jump: torch.Tensor | None = None


def balanced(balance: np.ndarray, device: torch.device | str) -> Turns:
    """For keys of 8 bits, from a Tuning's balance: all channels of one size, then rotated."""
    mean, inverse, gain = (np.asarray(part, np.float64) for part in balance[:3])
    matrix = matrix_of(mean.shape[1])
    return Turns(_on(mean, device), _on(inverse[:, :, None] * matrix, device), _on(gain[:, :, None] * matrix, device))


def ordered(arranged: np.ndarray, device: torch.device | str) -> Turns:
    """For keys of 4 bits, from what cache.arranged says: the leading channels first, the others rotated."""
    mean, inverse, gain, jump, order = (np.asarray(part, np.float64) for part in arranged)
    dim = mean.shape[1]
    count = lead(dim)
    matrix = np.eye(dim)
    matrix[count:, count:] = rotation(dim - count)
    # component c of a head is its channel order[c]
    places = np.zeros((len(mean), dim, dim))
    for head, row in enumerate(order.astype(np.int64)):
        places[head, row, np.arange(dim)] = 1
    return Turns(_on(mean, device), _on((places * inverse[:, None, :]) @ matrix, device), _on((places * gain[:, None, :]) @ matrix, device), _on(jump, device))


def rotating(dim: int, device: torch.device | str) -> torch.Tensor:
    """The matrix of values of 4 bits [1, dim, dim], for all heads; its own inverse."""
    return _on(matrix_of(dim)[None], device)


def matrix_of(dim: int) -> np.ndarray:
    """[dim, dim] of the rotation: Walsh-Hadamard in blocks of the largest power of two that divides dim; symmetric, its own inverse."""
    block = dim & -dim
    found: np.ndarray = np.kron(np.eye(dim // block), rotation(block))
    return found


def _on(array: np.ndarray, device: torch.device | str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)


@triton.jit
def _turn(x, out, mean, matrix, rows, heads, group, each, DIM: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, WIDE: tl.constexpr):
    """Program (rows, head): x - mean, times the matrix of the head (`each` 1) or of all (0)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    d = tl.arange(0, D)
    start = (row.to(tl.int64) * heads + head) * DIM
    of_head = head // group
    total = tl.zeros([ROWS, D], tl.float32)
    for first in range(0, DIM, STEP):
        c = first + tl.arange(0, STEP)
        values = tl.load(x + start[:, None] + c[None, :], mask=(row < rows)[:, None] & (c < DIM)[None, :], other=0.0).to(tl.float32)
        if mean is not None:
            values = values - tl.load(mean + of_head * DIM + c, mask=c < DIM, other=0.0)[None, :]
        part = tl.load(matrix + of_head * each * DIM * DIM + c[:, None] * DIM + d[None, :], mask=(c < DIM)[:, None] & (d < DIM)[None, :], other=0.0)
        total = tl.dot(values, part, total, input_precision="ieee")
    tl.store(out + start[:, None] + d[None, :], stored(total, WIDE), mask=(row < rows)[:, None] & (d < DIM)[None, :])


def turn(x: torch.Tensor, out: torch.Tensor, matrix: torch.Tensor, heads: int, kv_heads: int, mean: torch.Tensor | None = None) -> None:
    """out [rows, heads * dim] = (x - mean) times the matrix [dim, dim] of each key-value head, or of all; mean float32 [kv_heads, dim]."""
    dim = matrix.shape[-1]
    if len(x):
        _turn[(triton.cdiv(len(x), ROWS), heads)](x, out, mean, matrix, len(x), heads, heads // kv_heads, int(len(matrix) > 1), DIM=dim, D=power(dim, 16),
                                                  ROWS=ROWS, STEP=STEP, WIDE=wide(out), num_warps=4)
