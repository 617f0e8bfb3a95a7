"""Keys and values into the cache: rotated on the way, rounded to its format, a scale per token and head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import triton
import triton.language as tl

from ...cache import PAGE, lead
from ._rounding import power, stored, to_bf16, to_e4m3, whole, wide
from .rope import rotated
from .store4 import store4

if TYPE_CHECKING:
    from .pool import GpuLayer

LARGEST = {"int8": 127.0, "fp8e4m3": 448.0}


@triton.jit
def _put(x, codes, scales, fixed, slot, head, heads, d, DIM: tl.constexpr, PAGE: tl.constexpr, FORMAT: tl.constexpr, COUNTED: tl.constexpr,
         LARGEST: tl.constexpr):
    """One head x float32 [lanes] into slot `slot` (page * PAGE + offset)."""
    place = (slot // PAGE).to(tl.int64) * heads * PAGE + head * PAGE + slot % PAGE
    if COUNTED:
        sound = tl.max(tl.where(tl.abs(x) < float("inf"), 0, 1), axis=0) == 0
        x = tl.where(sound, x, 0.0)
        scale = tl.div_rn(tl.max(tl.abs(x), axis=0), LARGEST)
        tl.store(scales + place, tl.where(sound, scale, float("nan")))
        x = tl.div_rn(x, tl.where(scale == 0.0, 1.0, scale))
    else:
        x = x * fixed
    if FORMAT == "fp32":
        code = x
    elif FORMAT == "bf16":
        code = to_bf16(x)
    elif FORMAT == "int8":
        code = whole(tl.minimum(tl.maximum(x, -127.0), 127.0)).to(tl.int8)
    else:
        code = to_e4m3(x)
    tl.store(codes + place * DIM + d, code, mask=d < DIM)


@triton.jit
def _store(q, k, v, turned, table, positions, slots, key_codes, key_scales, key_fixed, value_codes, value_scales, value_fixed, heads, kv_heads, first,
           DIM: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr, PAGE: tl.constexpr, K_FORMAT: tl.constexpr, K_COUNTED: tl.constexpr,
           K_LARGEST: tl.constexpr, V_FORMAT: tl.constexpr, V_COUNTED: tl.constexpr, V_LARGEST: tl.constexpr, WIDE: tl.constexpr):
    """Program (row, i): query head i rotated into `turned`; from i = `first` on the key-value head i - first into the cache."""
    row = tl.program_id(0)
    at = tl.program_id(1)
    d = tl.arange(0, D)
    wider = row.to(tl.int64)
    if ROTARY > 0:  # noqa: SIM102 (decided while compiling)
        if at < first:
            start = (wider * heads + at) * DIM
            tl.store(turned + start + d, stored(rotated(q + start, table, tl.load(positions + row), d, DIM, ROTARY), WIDE), mask=d < DIM)
    if at >= first:
        head = at - first
        slot = tl.load(slots + row)
        if slot >= 0:  # rows that only fill up a captured step have none
            start = (wider * kv_heads + head) * DIM
            if ROTARY > 0:
                key = rotated(k + start, table, tl.load(positions + row), d, DIM, ROTARY)
            else:
                key = tl.load(k + start + d, mask=d < DIM, other=0.0).to(tl.float32)
            value = tl.load(v + start + d, mask=d < DIM, other=0.0).to(tl.float32)
            if K_FORMAT != "int4":
                _put(key, key_codes, key_scales, key_fixed, slot, head, kv_heads, d, DIM, PAGE, K_FORMAT, K_COUNTED, K_LARGEST)
            if V_FORMAT != "int4":
                _put(value, value_codes, value_scales, value_fixed, slot, head, kv_heads, d, DIM, PAGE, V_FORMAT, V_COUNTED, V_LARGEST)


def _inverse(scale: float) -> float:
    """As the CPU's caches compute it, in float32."""
    return float(np.float32(1) / np.float32(scale))


def store(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, turned: torch.Tensor | None, table: torch.Tensor | None, positions: torch.Tensor,
          slots: torch.Tensor, layer: GpuLayer, heads: int) -> None:
    """k, v [rows, layer.heads * layer.dim] into `layer` at `slots` int32 [rows] (below 0: nowhere). With a `table` of angles [positions, rotary] keys are
    rotated first, and queries q [rows, heads * dim] into `turned`. What the cache holds in 4 bits comes turned, in float32, and no table with it."""
    if not len(k):
        return
    if layer.keys.format == "int4" and layer.key_scales is not None:
        jump = None if layer.turns is None or layer.keys.symmetric else layer.turns.jump
        store4(k, slots, layer.key_codes, layer.key_scales, layer.dim, lead(layer.dim), layer.keys.symmetric, jump)
    if layer.values.format == "int4" and layer.value_scales is not None:
        store4(v, slots, layer.value_codes, layer.value_scales, layer.dim, 0, layer.values.symmetric)
    if layer.keys.format == layer.values.format == "int4":
        return
    dim, halves = layer.dim, ((layer.keys, layer.key_scales, layer.key_scale), (layer.values, layer.value_scales, layer.value_scale))
    (keys, key_scales, key_fixed), (values, value_scales, value_fixed) = halves
    first = heads if table is not None else 0
    _store[(len(k), first + layer.heads)](
        q, k, v, q if turned is None else turned, table, positions, slots, layer.key_codes, key_scales, _inverse(key_fixed), layer.value_codes,
        value_scales, _inverse(value_fixed), heads, layer.heads, first, DIM=dim, D=power(dim), ROTARY=0 if table is None else table.shape[1], PAGE=PAGE,
        K_FORMAT=keys.format, K_COUNTED=key_scales is not None, K_LARGEST=LARGEST.get(keys.format, 1.0),
        V_FORMAT=values.format, V_COUNTED=value_scales is not None, V_LARGEST=LARGEST.get(values.format, 1.0), WIDE=turned is not None and wide(turned),
        num_warps=1)
