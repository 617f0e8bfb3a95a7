"""How a product y [rows, n] = x [rows, k] W^T is cut into programs, and what the kernels of all families have in common.

The weight is the left operand of the matrix units: a tile of y is computed as [n, rows], so that one row of x costs eight or sixteen columns, not 64 rows,
and packed codes become numbers in registers (Hopper's wgmma reads its left operand there). With few rows K is split over programs as well; the last of
them to arrive adds the parts in ascending order, so their order of arrival does not show in the bits.

A tile depends on n, k, the GPU and a bucket of rows, never on the rows themselves: within a bucket a row's bits are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
import triton.language as tl

from ._rounding import to_bf16

BUCKETS = (16, 32, 64, 128)  # rows of a tile; from the last on, several tiles
BAND = 8  # tiles of rows that share a weight's tiles while these are in the L2 cache
MOST_SPLITS = 16


@dataclass(frozen=True)
class Tile:
    """n, rows and k: the extent of a program's part of y and of one step over K; split: programs that share K; warps, stages: Triton's num_warps and
    num_stages."""

    n: int
    rows: int
    k: int
    split: int = 1
    warps: int = 4
    stages: int = 3


def bucket(rows: int) -> int:
    """Rows of a tile for a step of so many."""
    return next((size for size in BUCKETS if rows <= size), BUCKETS[-1])


@dataclass(frozen=True)
class Gpu:
    """What decides about tiles: multiprocessors, bytes of shared memory a program may have, compute capability."""

    processors: int
    shared: int
    capability: tuple[int, int]


SHARED = {(8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (10, 3): 227, (12, 0): 99}  # KiB (CUDA C++ guide, compute capabilities)
INTERPRETER = Gpu(4, 227 * 1024, (9, 0))  # every precision runs there


@cache
def gpu(device: torch.device) -> Gpu:
    """The GPU that tensors of a device are on."""
    if device.type != "cuda":
        return INTERPRETER
    found = torch.cuda.get_device_properties(device)
    return Gpu(found.multi_processor_count, SHARED.get((found.major, found.minor), 99) * 1024, (found.major, found.minor))


def fitted(tile: Tile, bits: int, x_bytes: int, on: Gpu) -> Tile:
    """The tile with as many stages as shared memory holds of codes and x, at least two."""
    step = tile.n * tile.k * bits // 8 + tile.rows * tile.k * x_bytes
    return replace(tile, stages=max(2, min(tile.stages, (on.shared - 1024) // step)))


def split_of(n: int, k: int, tile_n: int, step: int, count: int) -> int:
    """Programs that share K, a power of two: enough that `count` multiprocessors have two programs each, while each keeps at least four steps."""
    tiles, split = -(-n // tile_n), 1
    while split < MOST_SPLITS and tiles * split < 2 * count and k // (2 * split) >= 4 * step:
        split *= 2
    return split


def usual(n: int, k: int, rows: int, step: int, bits: int, x_bytes: int, on: Gpu) -> Tile:
    """The tile for a weight [n, k] of so many bits and so many rows of x: with few rows K is split, with many nothing is."""
    size = bucket(rows)
    if size <= 32:
        high = 128 if n >= 128 * on.processors else 64
        tile = Tile(high, size, step, split_of(n, k, high, step, on.processors), 4, 5)
    elif size == 64:
        tile = Tile(128, 64, step, split_of(n, k, 128, step, on.processors), 8, 4)
    else:
        tile = Tile(128, 128, step, 1, 8, 4)
    return fitted(tile, bits, x_bytes, on)


def candidates(usual: Tile, bits: int, x_bytes: int, on: Gpu) -> list[Tile]:
    """Tiles worth timing instead of the usual one, which comes first. The step over K stays, since sums of x are made for it; where `split` differs, so may the
    last bits of y, as between any two kernels here."""
    found = [usual]
    for n, warps in ((64, 4), (128, 4), (128, 8), (256, 8)):
        for split in {usual.split, max(1, usual.split // 2), min(MOST_SPLITS, 2 * usual.split) if usual.split > 1 else 1}:
            for stages in (3, 5, 7):
                tile = fitted(replace(usual, n=n, warps=warps, split=split, stages=stages), bits, x_bytes, on)
                if tile not in found and n * usual.rows <= warps * 4096:  # 128 sums to a thread
                    found.append(tile)
    return found


def grid(rows: int, n: int, tile: Tile) -> tuple[int, int]:
    return -(-rows // tile.rows) * -(-n // tile.n), tile.split


def workspace(x: torch.Tensor, rows: int, n: int, tile: Tile, counters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(parts of y, arrivals) for a product that splits K; `counters`, all zero, are zero again after the kernel. Any tensor does where nothing is split."""
    if tile.split == 1:
        return counters, counters
    return torch.empty(tile.split * rows * n, dtype=torch.float32, device=x.device), counters


def counters_for(n: int, device: torch.device | str) -> torch.Tensor:
    """int32 zeros, one for each tile of a weight that may be split: at most 128 rows, so one tile of rows, of at least 16 outputs."""
    return torch.zeros(-(-n // 16), dtype=torch.int32, device=device)


def even(sizes: Sequence[int], step: int) -> bool:
    """Whether all sizes are whole steps, so that nothing needs a mask."""
    return all(size % step == 0 for size in sizes)


@triton.jit
def place(rows, n, TILE_N: tl.constexpr, TILE_ROWS: tl.constexpr, BAND: tl.constexpr):
    """(tile of rows, tile of n) of this program: bands of BAND tiles of rows go through all tiles of n together."""
    index = tl.program_id(0)
    row_tiles, n_tiles = tl.cdiv(rows, TILE_ROWS), tl.cdiv(n, TILE_N)
    band = index // (BAND * n_tiles)
    high = tl.minimum(row_tiles - band * BAND, BAND)
    inside = index % (BAND * n_tiles)
    return band * BAND + inside % high, inside // high


@triton.jit
def within(at, size, known):
    """at < size where the number `known` says so, else nowhere. (A mask joined with a single truth value is what the interpreter cannot do.)"""
    return at < tl.where(known, size, 0)


@triton.jit
def gathered(tile, parts, arrivals, at, inside, size, tile_index, SPLIT: tl.constexpr):
    """(is this the last program of its tile, the sum of all parts in ascending order if it is). at: places in y of the tile's elements; size: of y."""
    mine = tl.program_id(1).to(tl.int64) * size
    tl.store(parts + mine + at, tile, mask=inside)
    tl.debug_barrier()  # every thread's part is written before one of them says so
    last = tl.atomic_add(arrivals + tile_index, 1, sem="acq_rel", scope="gpu") == SPLIT - 1
    total = tl.zeros_like(tile)
    if last:
        for part in range(SPLIT):
            total += tl.load(parts + part * size + at, mask=inside, other=0.0, cache_modifier=".cg")
        tl.store(arrivals + tile_index, 0)
    return last, total


@triton.jit
def finish(y, bias, residual, tile, n_at, row_at, rows, n):
    """y [row_at, n_at] = tile [n, rows] + bias + residual; bias float32 [n] or None, residual like y or None."""
    at = row_at.to(tl.int64)[None, :] * n + n_at[:, None]
    inside = (row_at < rows)[None, :] & (n_at < n)[:, None]
    if bias is not None:
        tile += tl.load(bias + n_at, mask=n_at < n, other=0.0)[:, None]
    if residual is not None:
        tile += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, narrowed(tile, y.dtype.element_ty), mask=inside)


@triton.jit
def narrowed(tile, kept: tl.constexpr):
    """float32 as y holds it, rounded to the same bits everywhere."""
    if kept == tl.bfloat16:
        return to_bf16(tile)
    else:
        return tile


def empty(rows: int, n: int, device: torch.device, narrow: bool) -> torch.Tensor:
    """Room for y."""
    return torch.empty((rows, n), dtype=torch.bfloat16 if narrow else torch.float32, device=device)


__all__ = ["BAND", "Gpu", "Tile", "bucket", "candidates", "counters_for", "empty", "even", "finish", "fitted", "gathered", "gpu", "grid", "narrowed", "place",
           "split_of", "usual", "within", "workspace"]
