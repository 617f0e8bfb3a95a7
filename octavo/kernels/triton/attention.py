"""Causal attention over pages of the cache, softmax as it goes (arXiv 2205.14135).

A sequence with one new token is attended by programs over runs of SPLIT tokens (as in Flash-Decoding), whose parts are put together in ascending order;
more rows of a sequence go in tiles over all of its tokens. Blocks of tokens begin at multiples of BLOCK of the sequence, whatever else is computed: the
order of operations of a row depends on nothing but its place and on whether it came alone.

Products are bfloat16 with float32 sums; the codes of 8-bit and 4-bit caches are exact in bfloat16, their scales and offsets meet scores and weights. What a
cache stores rotated is attended rotated: queries come turned, answers over 4-bit values go back to be turned (turn.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ...cache import PAGE, lead
from ._rounding import DOT, from_e4m3, power, stored, tanh, wide
from .store4 import half
from .tiles import gpu

if TYPE_CHECKING:
    from .pool import GpuLayer

SPLIT = 256       # tokens of a program that attends for a single row
BLOCK = 64        # tokens read at a time; half as many of INT8, INT4 and for wide heads
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
def _word(word, SYMMETRIC: tl.constexpr):
    """(scale, offset) float32 of the words beside 4-bit codes (store4.py)."""
    if SYMMETRIC:
        scale = word & -65536
    else:
        scale = word & 0x7FFF0000  # the sign says something else
    return scale.to(tl.float32, bitcast=True), (word << 16).to(tl.float32, bitcast=True)


@triton.jit
def _asked(q, start, mine, jump, head, DIM: tl.constexpr, D: tl.constexpr, H: tl.constexpr, L: tl.constexpr, LEAD: tl.constexpr, K_FORMAT: tl.constexpr,
           DOT: tl.constexpr):
    """Queries at start [M] as they meet keys: all components [M, D]; or, of 4-bit keys, the first half, the second, the leading ones over 16 (which meet
    the lower four of their bits), and float32 [M] their sum and their product with the jump."""
    if K_FORMAT == "int4":
        HALF: tl.constexpr = (DIM + 1) // 2
        h, leads = tl.arange(0, H), tl.arange(0, L)
        low = tl.load(q + start[:, None] + h[None, :], mask=mine[:, None] & (h < HALF)[None, :], other=0.0).to(tl.float32)
        high = tl.load(q + start[:, None] + HALF + h[None, :], mask=mine[:, None] & (h < DIM - HALF)[None, :], other=0.0).to(tl.float32)
        first = tl.load(q + start[:, None] + leads[None, :], mask=mine[:, None] & (leads < LEAD)[None, :], other=0.0).to(tl.float32)
        summed = tl.sum(low, axis=1) + tl.sum(high, axis=1)
        jumped = summed
        if jump is not None:
            low_jump = tl.load(jump + head * DIM + h, mask=h < HALF, other=0.0)
            high_jump = tl.load(jump + head * DIM + HALF + h, mask=h < DIM - HALF, other=0.0)
            jumped = tl.sum(low * low_jump[None, :], axis=1) + tl.sum(high * high_jump[None, :], axis=1)
        return low.to(DOT), high.to(DOT), (first * 0.0625).to(DOT), summed, jumped
    else:
        d = tl.arange(0, D)
        found = tl.load(q + start[:, None] + d[None, :], mask=mine[:, None] & (d < DIM)[None, :], other=0.0).to(tl.float32).to(DOT)
        return found, found, found, start, start


@triton.jit
def _nibbles(codes, place, there, inside, DOT: tl.constexpr):
    """(low, high) nibbles of the bytes at `place` of each token's head, for matrix units."""
    packed = tl.load(codes + place, mask=there[:, None] & inside[None, :], other=0).to(tl.int32)
    return (packed & 15).to(tl.float32).to(DOT), (packed >> 4).to(tl.float32).to(DOT)


@triton.jit
def _over(q, q_high, q_lead, q_sum, q_jump, first, last, length, at, head, table, key_codes, key_scales, value_codes, value_scales, kv_heads, scale, softcap,
          window, DIM: tl.constexpr, D: tl.constexpr, H: tl.constexpr, L: tl.constexpr, LEAD: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr,
          PAGE: tl.constexpr, K_FORMAT: tl.constexpr, K_COUNTED: tl.constexpr, K_SYMMETRIC: tl.constexpr, V_FORMAT: tl.constexpr,
          V_COUNTED: tl.constexpr, V_SYMMETRIC: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr, DOT: tl.constexpr):
    """(largest score, sum of weights, sum of weighted values: all components, or the two halves of 4-bit ones) of queries (`_asked`) at places `at` [M],
    over tokens first .. last - 1 of the sequence whose pages `table` lists."""
    HALF: tl.constexpr = (DIM + 1) // 2
    LOW: tl.constexpr = (LEAD + 1) // 2
    K_BYTES: tl.constexpr = HALF + LOW
    largest = tl.full([M], LEAST, tl.float32)
    total = tl.zeros([M], tl.float32)
    d = tl.arange(0, D)
    h = tl.arange(0, H)
    if V_FORMAT == "int4":
        mixed = tl.zeros([M, H], tl.float32)
        high = tl.zeros([M, H], tl.float32)
        lifted = tl.zeros([M], tl.float32)
    else:
        mixed = tl.zeros([M, D], tl.float32)
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        there = n < length
        page = tl.load(table + n // PAGE, mask=there, other=0).to(tl.int64)
        place = (page * kv_heads + head) * PAGE + n % PAGE
        here = there[:, None] & (d < DIM)[None, :]
        if K_FORMAT == "int4":
            low_keys, high_keys = _nibbles(key_codes, place[:, None] * K_BYTES + h[None, :], there, h < HALF, DOT)
            scores = tl.dot(q, tl.trans(low_keys), input_precision="ieee")
            scores = tl.dot(q_high, tl.trans(high_keys), scores, input_precision="ieee")
            if LEAD > 0:
                leads = tl.arange(0, L)
                below = key_codes + place[:, None] * K_BYTES + HALF + (leads % LOW)[None, :]
                packed = tl.load(below, mask=there[:, None] & (leads < LEAD)[None, :], other=0).to(tl.int32)
                lower = ((packed >> (leads // LOW * 4)[None, :]) & 15).to(tl.float32).to(DOT)
                scores = tl.dot(q_lead, tl.trans(lower), scores, input_precision="ieee")
            word = tl.load(key_scales + place, mask=there, other=0)
            size, offset = _word(word, K_SYMMETRIC)
            scores = scores * size[None, :] + q_sum[:, None] * offset[None, :]
            if not K_SYMMETRIC:
                scores += q_jump[:, None] * tl.where(word < 0, 1.0, 0.0)[None, :]
            scores = scores * scale
        else:
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
        if V_FORMAT == "int4":
            size, offset = _word(tl.load(value_scales + place, mask=there, other=0), V_SYMMETRIC)
            lifted = lifted * fade + tl.sum(weights * offset[None, :], axis=1)
            weights = (weights * size[None, :]).to(DOT)
            low_values, high_values = _nibbles(value_codes, place[:, None] * HALF + h[None, :], there, h < HALF, DOT)
            mixed = mixed * fade[:, None] + tl.dot(weights, low_values, input_precision="ieee")
            high = high * fade[:, None] + tl.dot(weights, high_values, input_precision="ieee")
        else:
            if V_COUNTED:
                weights = weights * tl.load(value_scales + place, mask=there, other=0.0)[None, :]
            values = _numbers(tl.load(value_codes + place[:, None] * DIM + d[None, :], mask=here, other=0), V_FORMAT, DOT)
            mixed = mixed * fade[:, None] + tl.dot(weights.to(DOT), values, input_precision="ieee")
        largest = now
    if V_FORMAT == "int4":
        return largest, total, mixed + lifted[:, None], high + lifted[:, None]
    else:
        return largest, total, mixed, mixed


@triton.jit
def _answer(out, start, mine, mixed, high, DIM: tl.constexpr, D: tl.constexpr, H: tl.constexpr, V_FORMAT: tl.constexpr, WIDE: tl.constexpr):
    """What `_over` mixed, to start [M]."""
    if V_FORMAT == "int4":
        HALF: tl.constexpr = (DIM + 1) // 2
        h = tl.arange(0, H)
        tl.store(out + start[:, None] + h[None, :], stored(mixed, WIDE), mask=mine[:, None] & (h < HALF)[None, :])
        tl.store(out + start[:, None] + HALF + h[None, :], stored(high, WIDE), mask=mine[:, None] & (h < DIM - HALF)[None, :])
    else:
        d = tl.arange(0, D)
        tl.store(out + start[:, None] + d[None, :], stored(mixed, WIDE), mask=mine[:, None] & (d < DIM)[None, :])


@triton.jit(do_not_specialize=["width", "splits"])
def _alone(q, out, parts, sums, splits, rows, sequences, lengths, tables, width, key_codes, key_scales, value_codes, value_scales, value_fixed, jump, kv_heads,
           scale, softcap, window, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, H: tl.constexpr, L: tl.constexpr, LEAD: tl.constexpr,
           M: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr, WHOLE: tl.constexpr, PAGE: tl.constexpr, K_FORMAT: tl.constexpr,
           K_COUNTED: tl.constexpr, K_SYMMETRIC: tl.constexpr, V_FORMAT: tl.constexpr, V_COUNTED: tl.constexpr, V_SYMMETRIC: tl.constexpr,
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
    mine = m < GROUP
    row = tl.load(rows + item).to(tl.int64)
    place = ((row * kv_heads + head) * GROUP + m) * DIM
    q_first, q_high, q_lead, q_sum, q_jump = _asked(q, place, mine, jump, head, DIM, D, H, L, LEAD, K_FORMAT, DOT)
    last = tl.minimum(first + SPLIT, length)
    if WINDOWED:
        first = tl.maximum(first, tl.maximum(length - window, 0) // BLOCK * BLOCK)
    at = tl.zeros([M], tl.int32) + (length - 1)
    largest, total, mixed, high = _over(q_first, q_high, q_lead, q_sum, q_jump, first, last, length, at, head, tables + sequence.to(tl.int64) * width,
                                        key_codes, key_scales, value_codes, value_scales, kv_heads, scale, softcap, window, DIM, D, H, L, LEAD, M, BLOCK,
                                        PAGE, K_FORMAT, K_COUNTED, K_SYMMETRIC, V_FORMAT, V_COUNTED, V_SYMMETRIC, CAPPED, WINDOWED, DOT)
    if WHOLE:
        factor = (value_fixed / tl.where(total == 0.0, 1.0, total))[:, None]
        _answer(out, place, mine, mixed * factor, high * factor, DIM, D, H, V_FORMAT, WIDE)
    else:
        part = ((item.to(tl.int64) * kv_heads + head) * splits + split) * GROUP + m
        _answer(parts, part * DIM, mine, mixed * value_fixed, high * value_fixed, DIM, D, H, V_FORMAT, True)
        tl.store(sums + part * 2, largest, mask=mine)
        tl.store(sums + part * 2 + 1, total, mask=mine)


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
def _tiled(q, out, tiles, starts, lengths, tables, width, key_codes, key_scales, value_codes, value_scales, value_fixed, jump, kv_heads, scale, softcap,
           window, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, H: tl.constexpr, L: tl.constexpr, LEAD: tl.constexpr, M: tl.constexpr,
           BLOCK: tl.constexpr, PAGE: tl.constexpr, K_FORMAT: tl.constexpr, K_COUNTED: tl.constexpr, K_SYMMETRIC: tl.constexpr, V_FORMAT: tl.constexpr,
           V_COUNTED: tl.constexpr, V_SYMMETRIC: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr, DOT: tl.constexpr, WIDE: tl.constexpr):
    """Program (tile, key-value head): M // GROUP rows of a sequence from the tile's first on, all heads that share keys."""
    sequence = tl.load(tiles + tl.program_id(0) * 2)
    begin = tl.load(tiles + tl.program_id(0) * 2 + 1)
    head = tl.program_id(1)
    end = tl.load(starts + sequence + 1)
    length = tl.load(lengths + sequence)
    m = tl.arange(0, M)
    row = begin + m // GROUP
    mine = (m < M // GROUP * GROUP) & (row < end)
    place = ((row.to(tl.int64) * kv_heads + head) * GROUP + m % GROUP) * DIM
    q_first, q_high, q_lead, q_sum, q_jump = _asked(q, place, mine, jump, head, DIM, D, H, L, LEAD, K_FORMAT, DOT)
    at = tl.where(mine, length - end + row, -1)
    first = 0
    if WINDOWED:
        first = tl.maximum(length - end + begin - window + 1, 0) // BLOCK * BLOCK
    last = length - end + tl.minimum(begin + M // GROUP, end)
    _, total, mixed, high = _over(q_first, q_high, q_lead, q_sum, q_jump, first, last, length, at, head, tables + sequence.to(tl.int64) * width, key_codes,
                                  key_scales, value_codes, value_scales, kv_heads, scale, softcap, window, DIM, D, H, L, LEAD, M, BLOCK, PAGE, K_FORMAT,
                                  K_COUNTED, K_SYMMETRIC, V_FORMAT, V_COUNTED, V_SYMMETRIC, CAPPED, WINDOWED, DOT)
    factor = (value_fixed / tl.where(total == 0.0, 1.0, total))[:, None]
    _answer(out, place, mine, mixed * factor, high * factor, DIM, D, H, V_FORMAT, WIDE)


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
    formats = layer.keys.format, layer.values.format
    # widening codes takes registers, and so do products whose operands lie in registers: with more tokens at a time Ampere and Ada spill
    narrow = "int8" in formats or "int4" in formats or (dim > 64 and gpu(q.device).capability < (9, 0))
    block = BLOCK // 4 if wide(out) else BLOCK if dim <= 128 and not narrow else BLOCK // 2
    heads = {"GROUP": group, "DIM": dim, "D": power(dim, 16)}
    warps = 16 if wide(out) else 4  # products of float32 hold whole rows in registers
    leading = lead(dim) if layer.keys.format == "int4" else 0
    kind = {"H": power(half(dim), 16), "L": power(leading, 16), "LEAD": leading, "BLOCK": block, "PAGE": PAGE,
            "K_FORMAT": layer.keys.format, "K_COUNTED": layer.key_scales is not None, "K_SYMMETRIC": layer.keys.symmetric,
            "V_FORMAT": layer.values.format, "V_COUNTED": layer.value_scales is not None, "V_SYMMETRIC": layer.values.symmetric,
            "CAPPED": softcap > 0, "WINDOWED": window > 0, "DOT": tl.float32 if wide(out) else DOT}
    cache = (layer.key_codes, layer.key_scales, layer.value_codes, layer.value_scales, layer.value_scale, None if layer.turns is None else layer.turns.jump)
    numbers = (kv_heads, scale * layer.key_scale, softcap, window)
    width = who.tables.shape[1]
    if count := len(who.rows):
        parts = torch.empty((count * kv_heads * who.splits * group, dim), dtype=torch.float32, device=q.device) if who.splits > 1 else None
        sums = None if parts is None else torch.empty((len(parts), 2), dtype=torch.float32, device=q.device)
        _alone[(count, kv_heads, who.splits)](
            q, out, parts, sums, who.splits, who.rows, who.sequences, who.lengths, who.tables, width, *cache, *numbers, **heads, M=power(group, 16),
            SPLIT=SPLIT, WHOLE=who.splits == 1, **kind, WIDE=wide(out), num_warps=warps, num_stages=2)
        if parts is not None:
            _together[(count, kv_heads * group)](parts, sums, out, who.splits, who.rows, who.sequences, who.lengths, kv_heads, **heads, SPLIT=SPLIT,
                                                 WIDE=wide(out), num_warps=1)
    tiles = who.tiles.get(tile_rows(group, dim))
    if tiles is not None and len(tiles):
        _tiled[(len(tiles), kv_heads)](
            q, out, tiles, who.starts, who.lengths, who.tables, width, *cache, *numbers, **heads, M=max(tile_queries(dim), power(group, 16)), **kind,
            WIDE=wide(out), num_warps=warps, num_stages=2)
