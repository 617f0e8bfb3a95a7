"""Products by the libraries that torch brings (cuBLAS, CUTLASS): what `octavo tune` tries beside the kernels here, and never the default.

    torch int8     torch._int_mm: INT8 by INT8 with one scale per row of either; sums are exact, so a row's bits are its own
    torch fp8      torch._scaled_mm: FP8 by FP8 with one scale per row of either
    torch blocks   torch._scaled_mm: FP8 in blocks of 128 x 128 by FP8 in groups of 128, on Hopper (CUDA 12.9 and newer)
    torch bf16     torch.mm of 16-bit weights
    torch widened  torch.mm of any other weight with float inputs, widened to bfloat16 before every product into room that is free afterwards: for prompts

A library may take another kernel for another number of rows, and a row's last bits with it; `octavo tune` compares a row alone with the row in company and
rejects what differs. Scales, bias and residual follow in one kernel, in float32.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch.nn.functional import pad

from ._rounding import power, to_bf16, warps
from .embed import embed
from .linear_codes import scale_at
from .tiles import Gpu, empty

if TYPE_CHECKING:
    from .weights import GpuWeight

LIBRARIES = ("torch int8", "torch fp8", "torch blocks", "torch bf16", "torch widened")
SIDE = 128            # of a block
LEAST_WIDENED = 129  # rows: below, reading codes costs less than writing bfloat16
LONGEST_BLOCK = 1024


def supports(name: str, weight: GpuWeight, rows: int, on: Gpu) -> str | None:
    """None when the library multiplies this weight by up to `rows` rows, else why it does not."""
    whole = weight.codes.shape[1] == weight.k and weight.offsets is None
    if name == "torch int8":
        if weight.activation.format != "int8" or weight.kind != "ints8" or weight.group or weight.activation.size:
            return "takes INT8 weights and activations with one scale per row"
        if not whole or weight.n % 8 or rows <= 16:
            return "takes more than 16 rows, a whole number of 64 columns and of 8 outputs, and no zero points"
        return None
    if name == "torch fp8":
        if weight.activation.format != "fp8e4m3" or weight.kind != "fp8e4m3" or weight.group or weight.activation.size:
            return "takes FP8 weights and activations with one scale per row"
        if not whole or weight.n % 16:
            return "takes a whole number of 64 columns and of 16 outputs"
        return None if on.capability >= (8, 9) else "takes FP8 from Ada (compute capability 8.9) on"
    if name == "torch blocks":
        if weight.activation.format != "fp8e4m3" or weight.kind != "fp8e4m3" or not weight.group == weight.activation.size == weight.rows_alike == SIDE:
            return "takes FP8 weights in blocks of 128 x 128 and activations in groups of 128"
        if weight.n % SIDE or weight.k % (4 * SIDE) or weight.scales is None or weight.scales.dtype != torch.float32:
            return "takes a whole number of 128 outputs and of 512 columns, with float32 scales"
        return None if (9, 0) <= on.capability < (10, 0) else "runs on Hopper (compute capability 9.0)"
    if weight.activation.quantized or weight.kind == "fp32":
        return "takes 16-bit activations"
    if name == "torch bf16":
        return None if weight.kind == "bf16" and whole else "takes 16-bit weights of a whole number of 64 columns"
    if name == "torch widened":
        if weight.kind == "bf16" or weight.columns is not None:
            return "widens weights in few bits whose inputs come as they are"
        return None if rows >= LEAST_WIDENED else f"pays from {LEAST_WIDENED} rows on"
    return f"there is no library {name!r}"


def multiply(name: str, given: Any, weight: GpuWeight, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None,
             narrow: bool = False) -> torch.Tensor:
    """[rows, n] float32, or bfloat16 where `narrow` = x W^T + bias + residual. given: what the weight's family makes of x (`inputs`)."""
    if name == "torch int8":
        return finished(torch._int_mm(given.codes, weight.codes.t()), given.scales, weight.scales, weight.outer, bias, residual, narrow)
    if name == "torch fp8":
        product = _fp8_product(given.codes.view(torch.float8_e4m3fn), weight.codes.view(torch.float8_e4m3fn), narrow)
        return finished(product, given.scales, weight.scales, weight.outer, bias, residual, narrow)
    if name == "torch blocks":
        return finished(_blocks_product(given, weight, narrow), None, None, weight.outer, bias, residual, narrow)
    x = given.x if given.x.dtype == torch.bfloat16 else given.x.to(torch.bfloat16)
    matrix = weight.codes if weight.kind == "bf16" else _widened(weight)
    if narrow and bias is None and residual is None:
        return torch.mm(x, matrix.t())
    return finished(_wide_product(x, matrix), None, None, 1.0, bias, residual, narrow)


@cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), device=device)


def _fp8_product(x: torch.Tensor, matrix: torch.Tensor, narrow: bool) -> torch.Tensor:
    """x [rows, k] matrix [n, k]^T of FP8 numbers as they are, in bfloat16 or float32: the scales follow, so that cuBLAS' one factor for all does."""
    if x.device.type != "cuda":
        return x.float() @ matrix.float().t()
    one = _one(x.device)
    product: torch.Tensor = torch._scaled_mm(x, matrix.t(), one, one, out_dtype=torch.bfloat16 if narrow else torch.float32, use_fast_accum=False)
    return product


def _blocks_product(given: Any, weight: GpuWeight, narrow: bool) -> torch.Tensor:
    """The product with all scales but the weight's outer one. Scales of x [rows, groups] lie group by group, those of the weight block by block."""
    rows, missing = len(given.codes), -len(given.codes) % 16  # cuBLAS wants scales of aligned rows
    codes, scales = (pad(given.codes, (0, 0, 0, missing)), pad(given.scales, (0, missing))) if missing else (given.codes, given.scales)
    x, matrix = codes.view(torch.float8_e4m3fn), weight.codes.view(torch.float8_e4m3fn)
    assert weight.scales is not None
    blocks = weight.scales[:, ::SIDE].t().contiguous()
    if x.device.type != "cuda":
        wide = matrix.float() * blocks.repeat_interleave(SIDE, 0).repeat_interleave(SIDE, 1)
        return ((x.float() * scales.t().repeat_interleave(SIDE, 1)) @ wide.t())[:rows].contiguous()
    product: torch.Tensor = torch._scaled_mm(x, matrix.t(), scales.t(), blocks.t(), out_dtype=torch.bfloat16 if narrow else torch.float32)
    return product[:rows]


def _wide_product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """x [rows, k] matrix [n, k]^T in float32, of bfloat16."""
    if x.device.type != "cuda":
        return x.float() @ matrix.float().t()
    product: torch.Tensor = torch.mm(x, matrix.t(), out_dtype=torch.float32)
    return product


def _widened(weight: GpuWeight) -> torch.Tensor:
    """bfloat16 [n, k]: all rows of a weight, decoded as an embedding's are."""
    matrix = torch.empty((weight.n, weight.k), dtype=torch.bfloat16, device=weight.codes.device)
    embed(weight, torch.arange(weight.n, dtype=torch.int32, device=weight.codes.device), matrix)
    return matrix


@triton.jit
def _finished(product, x_scales, scales, bias, residual, y, n, outer, BLOCK: tl.constexpr):
    """Program (row, block of outputs)."""
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    place = row.to(tl.int64) * n + at
    value = tl.load(product + place, mask=inside, other=0).to(tl.float32)
    if scales is not None:
        value *= scale_at(scales, at, inside)
        value *= tl.load(x_scales + row)
    value *= outer
    if bias is not None:
        value += tl.load(bias + at, mask=inside, other=0.0)
    if residual is not None:
        value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    if y.dtype.element_ty == tl.bfloat16:
        tl.store(y + place, to_bf16(value), mask=inside)
    else:
        tl.store(y + place, value, mask=inside)


def finished(product: torch.Tensor, x_scales: torch.Tensor | None, scales: torch.Tensor | None, outer: float, bias: torch.Tensor | None,
             residual: torch.Tensor | None, narrow: bool) -> torch.Tensor:
    """[rows, n] = product (int32, bfloat16 or float32) times the scales of its rows [1, rows] and columns [1, n] and `outer`, plus bias and residual."""
    rows, n = product.shape
    y = empty(rows, n, product.device, narrow)
    if rows:
        block = min(power(n), LONGEST_BLOCK)
        _finished[(rows, triton.cdiv(n, block))](product, x_scales, scales, bias, residual, y, n, outer, BLOCK=block, num_warps=warps(block))
    return y
