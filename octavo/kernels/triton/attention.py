"""Causal attention over pages of the cache, softmax as it goes (arXiv 2205.14135).

A sequence with one new token is attended by programs over runs of SPLIT tokens (as in Flash-Decoding), whose parts are put together in ascending order;
more rows of a sequence go in tiles over all of its tokens. Blocks of tokens begin at multiples of BLOCK of the sequence, whatever else is computed: the
order of operations of a row depends on nothing but its place and on whether it came alone.

Products are bfloat16 with float32 sums; the codes of 8-bit caches are exact in bfloat16, their scales meet scores and weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ...cache import PAGE
from ._rounding import DOT, from_e4m3, power, stored, tanh, wide

if TYPE_CHECKING:
    from .pool import GpuLayer

SPLIT = 256       # tokens of a program that attends for a single row
BLOCK = 64        # tokens read at a time; half as many of INT8 and for wide heads
TILE = 64         # queries (rows times heads that share keys) of a program that attends for several rows
LEAST = tl.constexpr(-1.0e30)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _numbers(codes, FORMAT: tl.constexpr, DOT: tl.constexpr):
    """What codes stand for, scales apart, for matrix units."""
    if FORMAT == "fp8e4m3":
        return from_e4m3(codes).to(DOT)
    elif FORMAT == "int8":
        return codes.to(tl.float32).to(DOT)
    else:
        return codes.to(DOT)


@triton.jit
def _over(q, first, last, length, at, head, table, key_codes, key_scales, value_codes, value_scales, kv_heads, scale, softcap, window,
          DIM: tl.constexpr, D: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, K_FORMAT: tl.constexpr, K_COUNTED: tl.constexpr,
          V_FORMAT: tl.constexpr, V_COUNTED: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr, DOT: tl.constexpr):
    """(largest score, sum of weights, sum of weighted values) of queries q [M, D] at places `at` [M], over tokens first .. last - 1 of the sequence whose
    pages `table` lists."""
    largest = tl.full([M], LEAST, tl.float32)
    total = tl.zeros([M], tl.float32)
    mixed = tl.zeros([M, D], tl.float32)
    d = tl.arange(0, D)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        there = n < length
        page = tl.load(table + n // PAGE, mask=there, other=0).to(tl.int64)
        place = (page * kv_heads + head) * PAGE + n % PAGE
        here = there[:, None] & (d < DIM)[None, :]
        keys = _numbers(tl.load(key_codes + place[:, None] * DIM + d[None, :], mask=here, other=0), K_FORMAT, DOT)
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        if K_COUNTED:
            scores = scores * tl.load(key_scales + place, mask=there, other=0.0)[None, :]
        if CAPPED:
            scores = softcap * tanh(scores / softcap)
        seen = there[None, :] & (n[None, :] <= at[:, None])
        if WINDOWED:
            seen = seen & (n[None, :] > at[:, None] - window)
        scores = tl.where(seen, scores * LOG2E, float("-inf"))
        now = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - now[:, None])
        fade = tl.exp2(largest - now)
        total = total * fade + tl.sum(weights, axis=1)
        if V_COUNTED:
            weights = weights * tl.load(value_scales + place, mask=there, other=0.0)[None, :]
        values = _numbers(tl.load(value_codes + place[:, None] * DIM + d[None, :], mask=here, other=0), V_FORMAT, DOT)
        mixed = mixed * fade[:, None] + tl.dot(weights.to(DOT), values, input_precision="ieee")
        largest = now
    return largest, total, mixed


@triton.jit(do_not_specialize=["width", "splits"])
def _alone(q, out, parts, sums, splits, rows, sequences, lengths, tables, width, key_codes, key_scales, value_codes, value_scales, value_fixed, kv_heads, scale,
           softcap, window, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
           WHOLE: tl.constexpr, PAGE: tl.constexpr, K_FORMAT: tl.constexpr, K_COUNTED: tl.constexpr, V_FORMAT: tl.constexpr, V_COUNTED: tl.constexpr,
           CAPPED: tl.constexpr, WINDOWED: tl.constexpr, DOT: tl.constexpr, WIDE: tl.constexpr):
    """Program (item, key-value head, split): the row that is the only new one of its sequence, over one run of tokens."""
    item = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    sequence = tl.load(sequences + item)
    length = tl.load(lengths + sequence)
    first = split * SPLIT
    if not WHOLE:  # noqa: SIM102 (decided while compiling)
        if first >= length:
            return
    m = tl.arange(0, M)
    d = tl.arange(0, D)
    inside = (m < GROUP)[:, None] & (d < DIM)[None, :]
    row = tl.load(rows + item).to(tl.int64)
    place = ((row * kv_heads + head) * GROUP + m[:, None]) * DIM + d[None, :]
    queries = tl.load(q + place, mask=inside, other=0.0).to(tl.float32).to(DOT)
    last = tl.minimum(first + SPLIT, length)
    if WINDOWED:
        first = tl.maximum(first, tl.maximum(length - window, 0) // BLOCK * BLOCK)
    at = tl.zeros([M], tl.int32) + (length - 1)
    largest, total, mixed = _over(queries, first, last, length, at, head, tables + sequence.to(tl.int64) * width, key_codes, key_scales, value_codes,
                                  value_scales, kv_heads, scale, softcap, window, DIM, D, M, BLOCK, PAGE, K_FORMAT, K_COUNTED, V_FORMAT, V_COUNTED,
                                  CAPPED, WINDOWED, DOT)
    mixed = mixed * value_fixed
    if WHOLE:
        divisor = tl.where(total == 0.0, 1.0, total)
        tl.store(out + place, stored(mixed / divisor[:, None], WIDE), mask=inside)
    else:
        part = ((item.to(tl.int64) * kv_heads + head) * splits + split) * GROUP + m
        tl.store(parts + part[:, None] * DIM + d[None, :], mixed, mask=inside)
        tl.store(sums + part * 2, largest, mask=m < GROUP)
        tl.store(sums + part * 2 + 1, total, mask=m < GROUP)


@triton.jit(do_not_specialize=["splits"])
def _together(parts, sums, out, splits, rows, sequences, lengths, kv_heads, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr,
              SPLIT: tl.constexpr, WIDE: tl.constexpr):
    """Program (item, head): the parts of all splits, in ascending order."""
    item = tl.program_id(0)
    head = tl.program_id(1)
    length = tl.load(lengths + tl.load(sequences + item))
    d = tl.arange(0, D)
    start = (item.to(tl.int64) * kv_heads + head // GROUP) * splits * GROUP + head % GROUP
    largest = tl.full([1], LEAST, tl.float32)
    total = tl.zeros([1], tl.float32)
    mixed = tl.zeros([D], tl.float32)
    for split in range(0, (length + SPLIT - 1) // SPLIT):
        part = start + split * GROUP
        size = tl.load(sums + part * 2)
        now = tl.maximum(largest, size)
        before = tl.exp2(largest - now)
        here = tl.exp2(size - now)
        mixed = mixed * before + tl.load(parts + part * DIM + d, mask=d < DIM, other=0.0) * here
        total = total * before + tl.load(sums + part * 2 + 1) * here
        largest = now
    row = tl.load(rows + item).to(tl.int64)
    divisor = tl.where(total == 0.0, 1.0, total)
    tl.store(out + (row * kv_heads * GROUP + head) * DIM + d, stored(mixed / divisor, WIDE), mask=d < DIM)


@triton.jit(do_not_specialize=["width"])
def _tiled(q, out, tiles, starts, lengths, tables, width, key_codes, key_scales, value_codes, value_scales, value_fixed, kv_heads, scale, softcap, window,
           GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, K_FORMAT: tl.constexpr,
           K_COUNTED: tl.constexpr, V_FORMAT: tl.constexpr, V_COUNTED: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr, DOT: tl.constexpr,
           WIDE: tl.constexpr):
    """Program (tile, key-value head): M // GROUP rows of a sequence from the tile's first on, all heads that share keys."""
    sequence = tl.load(tiles + tl.program_id(0) * 2)
    begin = tl.load(tiles + tl.program_id(0) * 2 + 1)
    head = tl.program_id(1)
    end = tl.load(starts + sequence + 1)
    length = tl.load(lengths + sequence)
    m = tl.arange(0, M)
    d = tl.arange(0, D)
    row = begin + m // GROUP
    mine = (m < M // GROUP * GROUP) & (row < end)
    inside = mine[:, None] & (d < DIM)[None, :]
    place = ((row.to(tl.int64) * kv_heads + head) * GROUP + m % GROUP)[:, None] * DIM + d[None, :]
    queries = tl.load(q + place, mask=inside, other=0.0).to(tl.float32).to(DOT)
    at = tl.where(mine, length - end + row, -1)
    first = 0
    if WINDOWED:
        first = tl.maximum(length - end + begin - window + 1, 0) // BLOCK * BLOCK
    last = length - end + tl.minimum(begin + M // GROUP, end)
    _, total, mixed = _over(queries, first, last, length, at, head, tables + sequence.to(tl.int64) * width, key_codes, key_scales, value_codes,
                                  value_scales, kv_heads, scale, softcap, window, DIM, D, M, BLOCK, PAGE, K_FORMAT, K_COUNTED, V_FORMAT, V_COUNTED,
                                  CAPPED, WINDOWED, DOT)
    divisor = tl.where(total == 0.0, 1.0, total)
    tl.store(out + place, stored(mixed * value_fixed / divisor[:, None], WIDE), mask=inside)


@dataclass(frozen=True)
class Attending:
    """Who attends in a step, int32 on the device. Of sequences with one new row: `rows` and `sequences` [singles]; tables [sequences, width] reach `splits`
    runs of SPLIT tokens at most. Of the others: `tiles` [count, 2], the sequence and the first row of each (see `tile_rows`)."""

    rows: torch.Tensor
    sequences: torch.Tensor
    splits: int
    tiles: dict[int, torch.Tensor]
    starts: torch.Tensor
    lengths: torch.Tensor
    tables: torch.Tensor


def tile_queries(head_dim: int) -> int:
    """Queries of a tile; wide heads leave room for fewer."""
    return TILE if head_dim <= 128 else TILE // 2


def tile_rows(group: int, head_dim: int) -> int:
    """Rows of a sequence that one program attends for, where `group` heads share keys."""
    return max(tile_queries(head_dim) // group, 1)


def attend(q: torch.Tensor, out: torch.Tensor, layer: GpuLayer, who: Attending, scale: float, window: int = 0, softcap: float = 0.0) -> None:
    """out [rows, heads * dim]: causal attention of q over the pages of each row's sequence, which hold the keys and values of these rows already."""
    dim, kv_heads = layer.dim, layer.heads
    group = q.shape[1] // dim // kv_heads
    narrow = "int8" in (layer.keys.format, layer.values.format)  # widening bytes takes registers: with more tokens at a time Ada spills
    block = BLOCK if dim <= 128 and not narrow else BLOCK // 2
    heads = {"GROUP": group, "DIM": dim, "D": power(dim, 16)}
    kind = {"BLOCK": block, "PAGE": PAGE, "K_FORMAT": layer.keys.format, "K_COUNTED": layer.key_scales is not None, "V_FORMAT": layer.values.format,
            "V_COUNTED": layer.value_scales is not None, "CAPPED": softcap > 0, "WINDOWED": window > 0, "DOT": tl.float32 if wide(out) else DOT}
    cache = (layer.key_codes, layer.key_scales, layer.value_codes, layer.value_scales, layer.value_scale)
    numbers = (kv_heads, scale * layer.key_scale, softcap, window)
    width = who.tables.shape[1]
    if count := len(who.rows):
        parts = torch.empty((count * kv_heads * who.splits * group, dim), dtype=torch.float32, device=q.device) if who.splits > 1 else None
        sums = None if parts is None else torch.empty((len(parts), 2), dtype=torch.float32, device=q.device)
        _alone[(count, kv_heads, who.splits)](
            q, out, parts, sums, who.splits, who.rows, who.sequences, who.lengths, who.tables, width, *cache, *numbers, **heads, M=power(group, 16),
            SPLIT=SPLIT, WHOLE=who.splits == 1, **kind, WIDE=wide(out), num_warps=4, num_stages=2)
        if parts is not None:
            _together[(count, kv_heads * group)](parts, sums, out, who.splits, who.rows, who.sequences, who.lengths, kv_heads, **heads, SPLIT=SPLIT,
                                                 WIDE=wide(out), num_warps=1)
    tiles = who.tiles.get(tile_rows(group, dim))
    if tiles is not None and len(tiles):
        _tiled[(len(tiles), kv_heads)](
            q, out, tiles, who.starts, who.lengths, who.tables, width, *cache, *numbers, **heads, M=max(tile_queries(dim), power(group, 16)), **kind,
            WIDE=wide(out), num_warps=4, num_stages=2)
