"""What is done number by number: gates, sums, soft caps."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._rounding import stored, tanh, wide

BLOCK = 1024


@triton.jit
def _gate(gate, up, out, count, BLOCK: tl.constexpr, KIND: tl.constexpr, WIDE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    if KIND == "silu":
        act = x / (1.0 + tl.exp(-x))
    elif KIND == "gelu_tanh":
        act = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    else:
        act = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    tl.store(out + at, stored(act * y, WIDE), mask=inside)


@triton.jit
def _add(x, y, out, count, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, stored(total, WIDE), mask=inside)


@triton.jit
def _softcap(x, out, count, cap, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, stored(cap * tanh(values / cap), WIDE), mask=inside)


def gate(kind: str, x: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> None:
    """out = act(x) * up, all alike; kind: silu, gelu_tanh, gelu."""
    if x.numel():
        _gate[(triton.cdiv(x.numel(), BLOCK),)](x, up, out, x.numel(), BLOCK=BLOCK, KIND=kind, WIDE=wide(out))


def add(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    """out = x + y, all of one shape."""
    if x.numel():
        _add[(triton.cdiv(x.numel(), BLOCK),)](x, y, out, x.numel(), BLOCK=BLOCK, WIDE=wide(out))


def softcap(x: torch.Tensor, out: torch.Tensor, cap: float) -> None:
    """out = cap * tanh(x / cap)"""
    if x.numel():
        _softcap[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), cap, BLOCK=BLOCK, WIDE=wide(out))
