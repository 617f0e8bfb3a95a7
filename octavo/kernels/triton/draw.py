"""Drawing tokens where the logits lie, by the rules of csrc/sampling.h: only the tokens come back.

One program looks through a row: its largest value, the sum of all weights, and the short head of the row in which probabilities that matter sit. The head is
sorted (value first, then id) and a second program cuts it and takes the token. A row whose head is longer than HEAD is left to the CPU. Sums are added up in
another order than on the CPU, in float64, so the token is another only where u falls within rounding of an edge between two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from ..op import Draws

HEAD = 4096
BLOCK = 4096
LEAST = (1e-3, 2e-4, 4e-5, 8e-6, 1e-6)  # relative to the largest weight: what belongs to the head, tried in turn


@triton.jit
def _ordered(x):
    """int32 that are ordered as float32 are (no NaN)."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit(do_not_specialize=["count"])
def _look(logits, rows, settings, ranks, numbers, heads, tokens, width, stride, count, HEAD: tl.constexpr, BLOCK: tl.constexpr,
          L0: tl.constexpr, L1: tl.constexpr, L2: tl.constexpr, L3: tl.constexpr, L4: tl.constexpr):
    """Program (draw). settings float32 [3, count]: 1 / temperature, top_p, min_p; ranks int32 [count]: top_k; numbers float64 [2, count]: u, and out: the sum
    of all weights. heads int64 [count, HEAD]: out. tokens int32 [count]: out, -2 where the second program takes it."""
    at = tl.program_id(0)
    row = logits + tl.load(rows + at).to(tl.int64) * stride
    scale = tl.load(settings + at)
    scale = tl.where(scale > 0.0, scale, 1.0)  # of a row that is not drawn: any number
    top_p = tl.load(settings + count + at)
    min_p = tl.load(settings + 2 * count + at)
    rank = tl.load(ranks + at)
    place = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, width, BLOCK):
        largest = tl.maximum(largest, tl.load(row + start + place, mask=start + place < width, other=float("-inf")))
    top = tl.max(largest, axis=0)
    whole = (rank <= 0) & (top_p >= 1.0)
    # Sums of weights and counts above each of the bounds, and above min_p.
    total = tl.zeros((), tl.float64)
    c0 = tl.zeros((), tl.int32)
    c1 = tl.zeros((), tl.int32)
    c2 = tl.zeros((), tl.int32)
    c3 = tl.zeros((), tl.int32)
    c4 = tl.zeros((), tl.int32)
    s0 = tl.zeros((), tl.float64)
    s1 = tl.zeros((), tl.float64)
    s2 = tl.zeros((), tl.float64)
    s3 = tl.zeros((), tl.float64)
    s4 = tl.zeros((), tl.float64)
    for start in range(0, width, BLOCK):
        w = _weights(row, start + place, width, top, scale)
        if whole:
            total += tl.sum(tl.where(w >= min_p, w, 0.0), axis=0).to(tl.float64)
        else:
            total += tl.sum(w, axis=0).to(tl.float64)
            c0 += tl.sum((w >= L0).to(tl.int32), axis=0)
            c1 += tl.sum((w >= L1).to(tl.int32), axis=0)
            c2 += tl.sum((w >= L2).to(tl.int32), axis=0)
            c3 += tl.sum((w >= L3).to(tl.int32), axis=0)
            c4 += tl.sum((w >= L4).to(tl.int32), axis=0)
            s0 += tl.sum(tl.where(w >= L0, w, 0.0), axis=0).to(tl.float64)
            s1 += tl.sum(tl.where(w >= L1, w, 0.0), axis=0).to(tl.float64)
            s2 += tl.sum(tl.where(w >= L2, w, 0.0), axis=0).to(tl.float64)
            s3 += tl.sum(tl.where(w >= L3, w, 0.0), axis=0).to(tl.float64)
            s4 += tl.sum(tl.where(w >= L4, w, 0.0), axis=0).to(tl.float64)
    tl.store(numbers + count + at, total)
    if whole:
        target = tl.load(numbers + at) * total
        before = tl.zeros((), tl.float64)
        token = tl.full((), -1, tl.int32)
        last = tl.zeros((), tl.int32)
        for start in range(0, width, BLOCK):
            w = _weights(row, start + place, width, top, scale)
            w = tl.where(w >= min_p, w, 0.0)
            sums = before + tl.cumsum(w.to(tl.float64), axis=0)
            after = before + tl.sum(w, axis=0).to(tl.float64)
            hit = tl.min(tl.where((w > 0.0) & (sums > target), start + place, width), axis=0)
            token = tl.where((token < 0) & (hit < width), hit, token)
            last = tl.maximum(last, tl.max(tl.where(w > 0.0, start + place, 0), axis=0))
            before = after
        tl.store(tokens + at, tl.where(token < 0, last, token))
    else:
        # The first bound whose head is enough.
        wanted = top_p * total
        bound = tl.where(_enough(c4, s4, L4, rank, wanted, min_p), L4, -1.0)
        head = tl.where(bound > 0, c4, HEAD + 1)
        better = _enough(c3, s3, L3, rank, wanted, min_p)
        bound, head = tl.where(better, L3, bound), tl.where(better, c3, head)
        better = _enough(c2, s2, L2, rank, wanted, min_p)
        bound, head = tl.where(better, L2, bound), tl.where(better, c2, head)
        better = _enough(c1, s1, L1, rank, wanted, min_p)
        bound, head = tl.where(better, L1, bound), tl.where(better, c1, head)
        better = _enough(c0, s0, L0, rank, wanted, min_p)
        bound, head = tl.where(better, L0, bound), tl.where(better, c0, head)
        short = width <= HEAD
        bound, head = tl.where(short, 0.0, bound), tl.where(short, width, head)
        fits = (head <= HEAD) & (top < float("inf")) & (top > float("-inf"))
        used = tl.zeros((), tl.int32)
        end = tl.where(fits, width, 0)
        for start in range(0, end, BLOCK):
            ids = start + place
            x = tl.load(row + ids, mask=ids < width, other=float("-inf"))
            inside = (ids < width) & (_weights(row, ids, width, top, scale) >= bound)
            to = used + tl.cumsum(inside.to(tl.int32), axis=0) - 1
            key = (_ordered(x).to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)
            tl.store(heads + at.to(tl.int64) * HEAD + to, key, mask=inside & (to < HEAD))
            used += tl.sum(inside.to(tl.int32), axis=0)
        tl.store(tokens + at, tl.where(fits, -2, -1))


@triton.jit
def _weights(row, ids, width, top, scale):
    """Of some ids relative to the largest, 0 beyond the row."""
    x = tl.load(row + ids, mask=ids < width, other=float("-inf"))
    return tl.where(ids < width, tl.exp((x - top) * scale), 0.0)


@triton.jit
def _enough(count, mass, least, rank, wanted, min_p):
    """Whether the head of weights from `least` on holds all that may be drawn."""
    return tl.where(rank > 0, count >= rank, (mass >= wanted) | (min_p >= least))


@triton.jit(do_not_specialize=["count"])
def _take(heads, settings, ranks, numbers, tokens, count, largest, HEAD: tl.constexpr):
    """Program (draw): of the head in its order, the largest first, cut by top_k, min_p and top_p, the token that u picks."""
    at = tl.program_id(0)
    if tl.load(tokens + at) == -2:
        place = tl.arange(0, HEAD)
        key = tl.load(heads + at.to(tl.int64) * HEAD + place)
        there = key > largest
        bits = (key >> 32).to(tl.int32)
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        x = tl.where(there, bits.to(tl.float32, bitcast=True), float("-inf"))
        ids = 0x7FFFFFFF - (key & 0xFFFFFFFF).to(tl.int32)
        top = tl.max(x, axis=0)
        w = tl.where(there, tl.exp((x - top) * tl.load(settings + at)), 0.0)
        rank = tl.load(ranks + at)
        w = tl.where((rank <= 0) | (place < rank), w, 0.0)
        wide = w.to(tl.float64)
        total = tl.load(numbers + count + at)
        if rank > 0:
            total = tl.sum(wide, axis=0)
        wide = tl.where((w >= tl.load(settings + 2 * count + at)) & (w > 0.0), wide, 0.0)
        before = tl.cumsum(wide, axis=0) - wide
        wide = tl.where((before < tl.load(settings + count + at) * total) | (place == 0), wide, 0.0)
        sums = tl.cumsum(wide, axis=0)
        target = tl.load(numbers + at) * tl.sum(wide, axis=0)
        chosen = tl.min(tl.where((wide > 0.0) & (sums > target), place, HEAD), axis=0)
        last = tl.max(tl.where(wide > 0.0, place, 0), axis=0)
        chosen = tl.minimum(chosen, last)
        tl.store(tokens + at, tl.sum(tl.where(place == chosen, ids, 0), axis=0))


def draw(logits: torch.Tensor, rows: Sequence[int], temperatures: Sequence[float], top_k: Sequence[int], top_p: Sequence[float], min_p: Sequence[float],
         u: Sequence[float]) -> list[int]:
    """Tokens of some `rows` of logits float32 [_, width], drawn by softmax(row / temperature) cut by top_k (0: all), then min_p (0: all) and top_p (1: all);
    u in [0, 1) picks. -1 for a row to be drawn on the CPU."""
    count, width, device = len(rows), logits.shape[1], logits.device
    if not count:
        return []
    ranks = [k if 0 < k < width else 0 for k in top_k]
    if all(k == 0 and p >= 1 for k, p in zip(ranks, top_p, strict=True)):
        heads = torch.empty((1, 1), dtype=torch.int64, device=device)  # not read
    else:
        heads = torch.full((count, HEAD), torch.iinfo(torch.int64).min, dtype=torch.int64, device=device)
    many = -(-count // 4) * 4  # parts begin at multiples of 16 bytes, whatever their number
    numbers, settings, whole = np.zeros((2, many)), np.zeros((3, many), np.float32), np.zeros((2, many), np.int32)
    numbers[0, :count] = u
    settings[:, :count] = 1 / np.array(temperatures, np.float32), top_p, min_p
    whole[:, :count] = ranks, rows
    packed = torch.from_numpy(np.concatenate([part.reshape(-1).view(np.int32) for part in (numbers, settings, whole)])).to(device)
    at = packed[: 4 * many].view(torch.float64), packed[4 * many : 7 * many].view(torch.float32), packed[7 * many : 8 * many], packed[8 * many :]
    tokens = torch.empty(count, dtype=torch.int32, device=device)
    launch(logits, heads, at, tokens, many)
    found: list[int] = tokens.tolist()
    return found


class DrawnRows:
    """The draws of a captured step: what is drawn and how lies at fixed places, one u for each step that follows another."""

    def __init__(self, rows: int, steps: int, device: torch.device) -> None:
        self.rows, self.steps, self.many = rows, steps, -(-rows // 4) * 4
        many = self.many
        self.host = torch.zeros(2 * steps * many + 4 * many + 4, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.numbers = self.host.numpy()
        self.inputs = self.host.to(device)
        end = 2 * steps * many
        self.u = self.inputs[:end].view(torch.float64).view(steps, many)
        self.settings, self.ranks = self.inputs[end : end + 3 * many].view(torch.float32), self.inputs[end + 3 * many : end + 4 * many]
        self.turn = self.inputs[end + 4 * many : end + 4 * many + 1]
        self.current = torch.zeros((2, many), dtype=torch.float64, device=device)
        self.places = torch.arange(many, dtype=torch.int32, device=device)
        self.heads = torch.empty((rows, HEAD), dtype=torch.int64, device=device)

    def set(self, draws: Draws, width: int) -> None:
        """Take these draws, from the next `into` on. Copies without waiting."""
        many, count, end = self.many, len(draws.temperature), 2 * self.steps * self.many
        self.numbers[:] = 0
        self.numbers[:end].view(np.float64).reshape(self.steps, many)[: len(draws.u), :count] = draws.u
        settings = self.numbers[end : end + 3 * many].view(np.float32).reshape(3, many)
        drawn = draws.temperature > 0
        settings[0, :count] = np.where(drawn, 1 / np.where(drawn, draws.temperature, 1), 0)
        settings[1, :count], settings[2, :count] = draws.top_p, draws.min_p
        self.numbers[end + 3 * many : end + 3 * many + count] = np.where(draws.top_k < width, draws.top_k, 0)
        self.inputs.copy_(self.host, non_blocking=True)

    def into(self, best: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """int32 [2, rows]: the tokens drawn from logits [rows, width] where any are, -1 where the CPU must, else the likeliest; and best[1]. Then the next u is
        next."""
        self.current[0] = self.u.index_select(0, self.turn)[0]
        self.turn += 1
        tokens = torch.empty(self.rows, dtype=torch.int32, device=logits.device)
        self.heads.fill_(torch.iinfo(torch.int64).min)
        launch(logits, self.heads, (self.current, self.settings, self.ranks, self.places), tokens, self.many)
        return torch.stack([torch.where(self.settings[: self.rows] > 0, tokens, best[0]), best[1]])


def launch(logits: torch.Tensor, heads: torch.Tensor, at: Sequence[torch.Tensor], tokens: torch.Tensor, many: int) -> None:
    """Both programs for as many rows as there are `tokens`; at: numbers, settings, ranks, rows, each in rows of `many`. heads [1, 1] where none are needed."""
    numbers, settings, ranks, rows = at
    count, width = len(tokens), logits.shape[1]
    _look[(count,)](logits, rows, settings, ranks, numbers, heads, tokens, width, logits.stride(0), many, HEAD=HEAD, BLOCK=BLOCK,
                    L0=LEAST[0], L1=LEAST[1], L2=LEAST[2], L3=LEAST[3], L4=LEAST[4], num_warps=16)
    if heads.shape[1] == HEAD:
        heads = torch.sort(heads, dim=1, descending=True).values
        _take[(count,)](heads, settings, ranks, numbers, tokens, many, torch.iinfo(torch.int64).min, HEAD=HEAD, num_warps=16)
