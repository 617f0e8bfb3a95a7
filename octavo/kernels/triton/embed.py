"""Rows that are chosen: those of the tokens in the embedding table, those whose logits are wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ...qtensor import rotate
from ._rounding import from_e4m3, stored, wide
from .linear_codes import scale_at

if TYPE_CHECKING:
    from .weights import GpuWeight

BLOCK = 1024


@triton.jit
def _take(x, places, out, stride, width, factor, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0)
    place = tl.load(places + row).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + place * stride + at, mask=at < width, other=0.0).to(tl.float32)
    tl.store(out + row.to(tl.int64) * width + at, stored(values * factor, WIDE), mask=at < width)


@triton.jit
def _decode(tokens, codes, scales, offsets, table, out, n, k, stride, group, factor, BLOCK: tl.constexpr, KIND: tl.constexpr, BITS: tl.constexpr,
            WIDE: tl.constexpr):
    """Rows of codes as weights.py lays them out: of fewer than 8 bits, the columns of a byte are 8 * BITS apart."""
    row = tl.program_id(0)
    token = tl.load(tokens + row).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < k
    run = 8 * BITS
    code = tl.load(codes + token * stride + at // 64 * run + at % run, mask=inside, other=0)
    if BITS < 8:
        code = (code.to(tl.int32) >> (at % 64 // run * BITS)) & ((1 << BITS) - 1)
    if KIND == "table":
        value = tl.load(table + code, mask=inside, other=0.0)
    elif KIND == "fp8e4m3":
        value = from_e4m3(code)
    elif KIND == "fp8e5m2":
        value = (code.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
    elif BITS < 8:
        value = (code - (1 << (BITS - 1))).to(tl.float32)
    else:
        value = code.to(tl.float32)
    place = at // group * n + token
    value = value * scale_at(scales, place, inside)
    if offsets is not None:
        value += tl.load(offsets + place, mask=inside, other=0.0)
    tl.store(out + row.to(tl.int64) * k + at, stored(value * factor, WIDE), mask=inside)


def take(x: torch.Tensor, places: torch.Tensor, out: torch.Tensor, factor: float = 1.0) -> None:
    """out [places, width] = x[places, :width] * factor; x float32 or bfloat16 with rows one after another, places int32."""
    if len(places):
        width = out.shape[1]
        _take[(len(places), triton.cdiv(width, BLOCK))](x, places, out, x.shape[1], width, factor, BLOCK=BLOCK, WIDE=wide(out))


def embed(weight: GpuWeight, tokens: torch.Tensor, out: torch.Tensor, factor: float = 1.0) -> None:
    """out [rows, k] = rows `tokens` of the weight * factor. Only these rows are decoded."""
    if not len(tokens):
        return
    if weight.columns is not None or weight.kind == "pairs":
        out.copy_(_arranged(weight, tokens) * factor)
    elif weight.scales is None:
        take(weight.codes, tokens, out, factor)
    else:
        _decode[(len(tokens), triton.cdiv(weight.k, BLOCK))](
            tokens, weight.codes, weight.scales, weight.offsets, weight.table, out, weight.n, weight.k, weight.codes.shape[1], weight.group or weight.k,
            factor * weight.outer, BLOCK=BLOCK, KIND=weight.kind, BITS=weight.bits, WIDE=wide(out))


def _arranged(weight: GpuWeight, tokens: torch.Tensor) -> torch.Tensor:
    """float32 [rows, k]: rows of a weight whose inputs are permuted, scaled or rotated, by input."""
    from .weights import unpacked

    def of(array: torch.Tensor | None, axis: int) -> torch.Tensor | None:
        if array is not None and array.dtype == torch.float8_e4m3fn:
            return array.view(torch.uint8).index_select(axis, tokens).view(array.dtype)
        return None if array is None else array.index_select(axis, tokens)

    few = replace(weight, n=len(tokens), codes=weight.codes.index_select(0, tokens), scales=of(weight.scales, 1), offsets=of(weight.offsets, 1))
    values = unpacked(few)
    if weight.rotation:
        values = rotate(values, weight.rotation)
    if weight.order is not None:
        values = values[:, torch.argsort(weight.order)]
    return values if weight.factors is None else values * weight.factors
