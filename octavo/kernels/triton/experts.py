"""Mixtures of experts: every row of x meets a few of many weights (MXFP4 in gpt-oss, or any other codes), in one launch over rows sorted by expert.

`route` sorts the (row, choice) pairs by expert and cuts each expert's run into tiles; it reads nothing back from the GPU and its shapes depend on the number of
rows alone, so a step with experts can be captured. A pair's product is computed as `linear_codes` computes a row, whatever other pairs its expert has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ...errors import KernelError
from ._rounding import INTERPRETED, power
from .linear_codes import accumulated, assembly, mode_of, pack_of, plan, scaled
from .rows import span_sums
from .tiles import Gpu, Tile, even, fitted
from .weights import GpuWeight

MANY = 64  # pairs of an expert from which on tiles of rows are large


@dataclass(frozen=True)
class Experts:
    """Weights [experts, n, k] of one kind: codes [experts, n, ...], scales and offsets [experts, groups, n]; `like`: the first, for all that is equal."""

    like: GpuWeight
    codes: torch.Tensor
    scales: torch.Tensor | None
    offsets: torch.Tensor | None

    @property
    def count(self) -> int:
        return int(self.codes.shape[0])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.codes, self.scales, self.offsets) if part is not None)


@dataclass(frozen=True)
class Routing:
    """pairs int32 [rows * top]: row * top + choice, by expert; experts int32 [tiles]: the expert of each tile, -1 for tiles to spare; firsts, ends int32
    [tiles]: the places in `pairs` where a tile begins and its expert's run ends."""

    pairs: torch.Tensor
    experts: torch.Tensor
    firsts: torch.Tensor
    ends: torch.Tensor
    top: int
    size: int


def stacked(weights: Sequence[GpuWeight]) -> Experts:
    """Weights of one shape and precision as one array each. Raises KernelError for others."""
    first = weights[0]
    if any((w.kind, w.spec, w.n, w.k, w.outer, w.columns) != (first.kind, first.spec, first.n, first.k, first.outer, first.columns) for w in weights):
        raise KernelError("experts of one layer have one shape and one precision", where="triton")
    if first.activation.quantized or first.columns is not None:
        raise KernelError("experts meet float activations as they come", where="triton")

    def stack(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
        present = [part for part in parts if part is not None]
        return torch.stack(present) if present else None

    codes = stack([w.codes for w in weights])
    assert codes is not None
    scales = [w.scales for w in weights]
    if len({s.dtype for s in scales if s is not None}) > 1:
        raise KernelError("experts of one layer store their scales in one type", where="triton")
    return Experts(first, codes, stack(scales), stack([w.offsets for w in weights]))


def route(chosen: torch.Tensor, count: int, size: int) -> Routing:
    """chosen int [rows, top]: experts of each row, of `count`; size: pairs of a tile."""
    rows, top = chosen.shape
    flat, device = chosen.reshape(-1).to(torch.int64), chosen.device
    pairs = torch.argsort(flat, stable=True).to(torch.int32)
    counts = torch.zeros(count, dtype=torch.int64, device=device).scatter_add_(0, flat, torch.ones_like(flat))
    ends = counts.cumsum(0)
    tile_ends = ((counts + size - 1) // size).cumsum(0)
    tiles = min(rows * top, -(-rows * top // size) + count)
    index = torch.arange(tiles, device=device)
    expert = torch.searchsorted(tile_ends, index, right=True)
    known = expert.clamp(max=count - 1)
    before = tile_ends[known] - (counts[known] + size - 1) // size
    firsts = ends[known] - counts[known] + (index - before) * size
    return Routing(pairs, torch.where(expert < count, expert, -1).to(torch.int32), firsts.to(torch.int32), ends[known].to(torch.int32), top, size)


@triton.jit
def multiply_experts(x, pairs, experts, firsts, ends, codes, scales, offsets, sums, table, bias, y, n, k, groups, runs, x_stride, row_bytes, outer,
                     TOP: tl.constexpr, KIND: tl.constexpr, BITS: tl.constexpr, MODE: tl.constexpr, GROUP: tl.constexpr, ASM: tl.constexpr,
                     ASM_HIGH: tl.constexpr, PACK: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, TILE_N: tl.constexpr, TILE_ROWS: tl.constexpr,
                     STEP: tl.constexpr):
    """Program (tile of n, tile of pairs)."""
    expert = tl.load(experts + tl.program_id(1))
    if expert >= 0:
        at = tl.load(firsts + tl.program_id(1)) + tl.arange(0, TILE_ROWS)
        inside = at < tl.load(ends + tl.program_id(1))
        pair = tl.load(pairs + at, mask=inside, other=0)
        n_at = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
        wide = expert.to(tl.int64)
        if scales is not None:
            scales += wide * groups * n
        if offsets is not None:
            offsets += wide * groups * n
        if sums is not None:
            sums_rows = sums + (pair // TOP) * runs
        else:
            sums_rows = pair
        tile = accumulated(x + (pair // TOP).to(tl.int64) * x_stride, inside, codes + (wide * n + tl.minimum(n_at, n - 1)) * row_bytes, scales, offsets,
                           sums_rows, table, n_at, n, k, groups, runs, row_bytes, 0, tl.cdiv(k, STEP), KIND, BITS, MODE, GROUP, ASM, ASM_HIGH, PACK, WIDE, EVEN,
                           TILE_N, TILE_ROWS, STEP)
        tile = scaled(tile, scales, offsets, sums_rows, n_at, n, inside, outer, MODE, KIND, ASM)
        if bias is not None:
            tile += tl.load(bias + wide * n + n_at, mask=n_at < n, other=0.0)[:, None]
        tl.store(y + pair.to(tl.int64)[None, :] * n + n_at[:, None], tile, mask=inside[None, :] & (n_at < n)[:, None])


@triton.jit
def mixed(y, shares, out, n, TOP: tl.constexpr, BLOCK: tl.constexpr):
    """Program (row, block of n): the sum of a row's `TOP` products, each times its share, in the order of choice."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(TOP):
        total += tl.load(y + (row * TOP + choice) * n + at, mask=at < n, other=0.0) * tl.load(shares + row * TOP + choice)
    tl.store(out + row * n + at, total, mask=at < n)


def tile_for(weight: GpuWeight, pairs: int, count: int, on: Gpu) -> Tile:
    """The usual tile for so many pairs over `count` experts. Whether a tile of rows is small or large is all that `pairs` decides."""
    if pairs < MANY * count:
        return fitted(Tile(64, 16, plan(weight, 16, on)[0].k, 1, 4, 5), weight.bits, 4, on)
    return fitted(Tile(128, 64, plan(weight, 128, on)[0].k, 1, 8, 4), weight.bits, 4, on)


def multiply(x: torch.Tensor, experts: Experts, routing: Routing, tile: Tile, bias: torch.Tensor | None = None, repeated: bool = True) -> torch.Tensor:
    """float32 [rows * top, n]: for each (row, choice) the product of x's row with the expert chosen. bias float32 [experts, n]. x [rows, k]; or, where it is
    not `repeated`, [rows * top, k], a row for each pair (the second product of a layer)."""
    weight, pairs, x = experts.like, len(routing.pairs), x.contiguous()
    top = routing.top if repeated else 1
    mode = mode_of(weight, tile.rows)
    span = {"row": weight.k, "step": tile.k, "part": weight.group}.get(mode, 0) if experts.offsets is not None else 0
    sums = span_sums(x, span) if span else None
    y = torch.empty((pairs, weight.n), dtype=torch.float32, device=x.device)
    if not pairs:
        return y
    text = assembly(weight)
    multiply_experts[(-(-weight.n // tile.n), len(routing.experts))](
        x, routing.pairs, routing.experts, routing.firsts, routing.ends, experts.codes, experts.scales, experts.offsets, sums, weight.table, bias, y,
        weight.n, weight.k, 0 if experts.scales is None else experts.scales.shape[1], 0 if sums is None else sums.shape[1], x.stride(0),
        weight.codes.shape[1], weight.outer, TOP=top, KIND=weight.kind, BITS=weight.bits, MODE=mode, GROUP=weight.group or 1,
        ASM=text[0] if text else None, ASM_HIGH=text[1] if len(text) > 1 else None, PACK=pack_of(weight), WIDE=INTERPRETED, EVEN=even((weight.k,), tile.k),
        TILE_N=tile.n, TILE_ROWS=tile.rows, STEP=tile.k, num_warps=tile.warps, num_stages=tile.stages)
    return y


def mix(y: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """float32 [rows, n]: y [rows * top, n] times shares float32 [rows, top], added up in the order of choice."""
    rows, top = shares.shape
    out = torch.empty((rows, y.shape[1]), dtype=torch.float32, device=y.device)
    if rows:
        block = min(power(y.shape[1]), 1024)
        mixed[(rows, -(-y.shape[1] // block))](y, shares, out, y.shape[1], TOP=top, BLOCK=block)
    return out
