"""GpuWeight: a QTensor as the kernels read it, and `linear`, which sends each weight to the family of kernels that multiplies it.

Codes lie row by row. Of 4 bits in halves: within every 64 columns byte j of 32 holds column j in its low nibble and column j + 32 in the high one, so that a
tile of bytes is two tiles of adjacent columns and nothing need be interleaved; of 2 bits in quarters, byte j of 16 holding columns j, j + 16, j + 32, j + 48.
k is filled up to a multiple of 64. A number is stored * scale + offset, times `outer`; what `stored` is depends on `kind`:

    ints4, ints2   nibble - 8, two bits - 2 (so INT4, INT3 and INT2, with or without zero points)
    ints8          a signed byte (INT8, and INT5 to INT7; unsigned INT8 moved by 128)
    table          table[nibble], as bfloat16 holds it (NF4, FP4, MXFP4, NVFP4, IQ4_NL)
    pairs          likewise, but columns 2j and 2j + 1 in byte j: MXFP4 and NVFP4 that meet activations of the same format (linear_fp4)
    fp8e4m3, fp8e5m2   a byte of that format (MXFP8 too)
    bf16, fp32     the number itself, without scales
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ... import formats
from ...errors import KernelError
from ...qtensor import QTensor, rotate
from ...schemes import TensorSpec
from ..op import Problem, scale_refusal
from . import linear_codes, linear_fp4, linear_fp8, linear_int8
from .rows import Rounded
from .tiles import counters_for, gpu

COLUMNS = 64  # k is a multiple of it
SMALL_FLOATS = {"fp8e4m3": "fp8e4m3", "mxfp8": "fp8e4m3", "fp8e5m2": "fp8e5m2"}
E2M1 = ("mxfp4", "nvfp4")


@dataclass(frozen=True)
class GpuWeight:
    """A weight [n, k] on a device.

    codes    ints4, table, pairs uint8 [n, kpad/2]; ints2 uint8 [n, kpad/4]; ints8 int8 [n, kpad]; fp8 uint8 [n, kpad]; bf16, fp32 [n, kpad] of that type
    scales   [groups, n], n contiguous: float32, float16, bfloat16, uint8 exponents (2^(e - 127)), or float8_e4m3fn (pairs); None for bf16 and fp32
    offsets  float32 [groups, n] or None
    table    float32 [16] or None
    group    columns to a scale, 0: one for all
    rows_alike   rows whose scales are equal in every group (of a block), 1 where nothing is known
    outer    a factor of the whole weight
    order, factors, rotation   of the inputs, as in QTensor; columns: what equals another weight's where both take the same inputs
    counters all zero between products: tiles.workspace
    """

    kind: str
    spec: TensorSpec
    activation: TensorSpec
    n: int
    k: int
    codes: torch.Tensor
    scales: torch.Tensor | None
    offsets: torch.Tensor | None
    table: torch.Tensor | None
    group: int
    rows_alike: int
    outer: float
    input_scale: float
    order: torch.Tensor | None
    factors: torch.Tensor | None
    rotation: int
    columns: tuple[bytes, bytes, int] | None
    counters: torch.Tensor = field(repr=False)

    @property
    def bits(self) -> int:
        """Bits of a stored code."""
        return {"ints4": 4, "table": 4, "pairs": 4, "ints2": 2, "bf16": 16, "fp32": 32}.get(self.kind, 8)

    @property
    def exact(self) -> bool:
        """Whether scale times code is exact in bfloat16: floats of one or three mantissa bits under powers of two or FP8 scales."""
        return self.spec.format in E2M1 and self.scales is not None and self.scales.dtype in (torch.uint8, torch.bfloat16)

    @property
    def nbytes(self) -> int:
        parts = (self.codes, self.scales, self.offsets, self.table, self.order, self.factors)
        return sum(part.nbytes for part in parts if part is not None)


def supports(problem: Problem, device: torch.device | str = "cpu") -> str | None:
    """None when the family of kernels for these activations multiplies this on the device, else why it does not."""
    if problem.op != "linear" or problem.weight is None:
        return None
    if formats.get(problem.weight.format).kind == "trellis":
        return "no GPU kernel walks a trellis yet; the CPU's do"
    refusal: str | None = _family(problem.activation).supports(problem, gpu(torch.device(device)).capability)
    return refusal


def prepare(tensor: QTensor, activation: TensorSpec, input_scale: float = 0.0, device: torch.device | str = "cpu") -> GpuWeight:
    """A QTensor [n, k] as the kernels read it, on `device`. input_scale: of a static `activation`. Raises KernelError for what no kernel multiplies."""
    n, k = tensor.shape
    refusal = supports(Problem("linear", n, k, weight=tensor.spec, activation=activation), device) or scale_refusal(activation, input_scale)
    if refusal is not None:
        raise KernelError(refusal, where="triton")
    kind, codes, shift = _stored(tensor, device)
    scales, offsets, group, alike = _scales(tensor, shift, device)
    if activation.format in linear_fp4.FORMATS and scales is not None:
        kind, scales = "pairs", _as_units_read(scales, activation.format)
    outer = 1.0 if tensor.outer is None else float(tensor.outer)
    number = formats.get(tensor.spec.format)
    table = None
    if kind in ("table", "pairs"):
        values = number.decode(torch.arange(16, dtype=torch.uint8, device=device))
        table = values.to(torch.bfloat16).to(torch.float32)
    order = None if tensor.order is None else _on(tensor.order, device).to(torch.int64)
    factors = None if tensor.factors is None else _on(tensor.factors, device).to(torch.float32)
    columns = None
    if order is not None or factors is not None or tensor.rotation:
        columns = _digest(tensor.order), _digest(tensor.factors), tensor.rotation
    return GpuWeight(kind, tensor.spec, activation, n, k, _packed(codes, kind), scales, offsets, table, group, alike, outer, input_scale, order, factors,
                     tensor.rotation, columns, counters_for(n, device))


def linear(x: torch.Tensor | Rounded, weights: Sequence[GpuWeight], biases: Sequence[torch.Tensor | None] | None = None,
           residual: torch.Tensor | None = None, narrow: bool = False, ways: Sequence[Any] | None = None,
           together: Callable[[Sequence[Callable[[], torch.Tensor]]], list[torch.Tensor]] | None = None) -> list[torch.Tensor]:
    """y [rows, n] float32 (bfloat16 where `narrow`) for each weight, of x [rows, k] float32 or bfloat16, rounded once for all weights that want the same; or of
    an x that was rounded as `rounding` says. biases float32 [n]; residual [rows, n] goes with exactly one weight. ways: a choices.Way for each weight, None:
    the usual kernel. together: does several products side by side."""
    if residual is not None and len(weights) != 1:
        raise KernelError("a residual goes with exactly one weight", where="linear")
    residual = None if residual is None else residual.contiguous()
    rows = len(x.codes) if isinstance(x, Rounded) else len(x)
    known: dict[Any, Any] = {}
    products: list[Callable[[], torch.Tensor]] = []
    for index, weight in enumerate(weights):
        family = family_of(weight)
        key = (weight.columns, *family.wants(weight, rows))
        if key not in known:
            if isinstance(x, Rounded):
                known[key] = family.completed(x, weight)
            else:
                if weight.columns not in known:
                    known[weight.columns] = arranged(x, weight)
                known[key] = family.inputs(known[weight.columns], weight)
        by = family if ways is None or ways[index] is None else ways[index]
        products.append(partial(by.multiply, known[key], weight, None if biases is None else biases[index], residual, narrow=narrow))
    return [product() for product in products] if together is None or len(products) == 1 else together(products)


def rounding(weights: Sequence[GpuWeight]) -> tuple[str, int] | None:
    """(format, columns that share a scale or 0) where all weights want their inputs rounded alike, as rows.normed can; else None."""
    found = {(w.activation.format, w.activation.size) if w.activation.quantized and w.activation.dynamic and w.columns is None else ("", 0) for w in weights}
    format, group = found.pop()
    return (format, group) if not found and format and group & (group - 1) == 0 else None


def family_of(weight: GpuWeight) -> Any:
    """The module whose kernels multiply the weight."""
    return _family(weight.activation)


def _family(activation: TensorSpec | None) -> Any:
    if activation is None or not activation.quantized:
        return linear_codes
    return linear_int8 if activation.format == "int8" else linear_fp4 if activation.format in linear_fp4.FORMATS else linear_fp8


def arranged(x: torch.Tensor, weight: GpuWeight) -> torch.Tensor:
    """x [rows, k] as the columns of the codes meet it: times factors, in order, rotated."""
    if weight.factors is not None:
        x = x * weight.factors
    if weight.order is not None:
        x = x.index_select(1, weight.order)
    return (rotate(x.to(torch.float32), weight.rotation) if weight.rotation else x).contiguous()


def unpacked(weight: GpuWeight) -> torch.Tensor:
    """float32 [n, k]: the numbers that the kernels multiply by, column by column of the codes; outer factor included."""
    codes = weight.codes
    if weight.kind in ("bf16", "fp32"):
        return codes[:, : weight.k].to(torch.float32)
    if weight.kind == "pairs":
        codes = torch.stack([codes & 15, codes >> 4], dim=2).reshape(weight.n, -1)
    elif weight.bits < 8:
        parts = [(codes.view(weight.n, -1, COLUMNS * weight.bits // 8) >> shift) & (2**weight.bits - 1) for shift in range(0, 8, weight.bits)]
        codes = torch.cat(parts, dim=2).reshape(weight.n, -1)
    if weight.table is not None:
        values = weight.table[codes.to(torch.int64)]
    elif weight.kind in SMALL_FLOATS:
        values = formats.get(weight.kind).decode(codes)
    else:
        values = codes.to(torch.float32) - {"ints4": 8, "ints2": 2}.get(weight.kind, 0)
    values = values[:, : weight.k]
    assert weight.scales is not None
    scales = linear_codes.scale_values(weight.scales).T
    group = torch.arange(weight.k, device=codes.device) // weight.group if weight.group else torch.zeros(weight.k, dtype=torch.int64, device=codes.device)
    values = values * scales[:, group]
    return (values if weight.offsets is None else values + weight.offsets.T[:, group]) * weight.outer


def _on(array: Any, device: torch.device | str) -> torch.Tensor:
    """An array as a torch tensor on the device; uint16 as int16."""
    if isinstance(array, torch.Tensor):
        return array.to(device)
    if array.dtype.char == "H":
        array = array.view("int16")
    return torch.tensor(array, device=device)


def _digest(array: Any) -> bytes:
    return b"" if array is None else hashlib.sha256(_on(array, "cpu").contiguous().numpy().tobytes()).digest()


def _stored(tensor: QTensor, device: torch.device | str) -> tuple[str, torch.Tensor, int]:
    """(kind, codes [n, kpad], what was taken from a code to get the stored number)."""
    number, codes = formats.get(tensor.spec.format), _on(tensor.codes, device)
    if not tensor.spec.quantized:
        if tensor.spec.format == "bf16":
            return "bf16", _filled(codes.view(torch.bfloat16), 0), 0
        return "fp32", _filled(codes.to(torch.float32), 0), 0
    if tensor.spec.format in SMALL_FLOATS:
        return SMALL_FLOATS[tensor.spec.format], _filled(codes, 0), 0
    if number.kind == "table":
        return "table", _filled(codes, 0), 0
    bits = 2 if number.bits == 2 else 4 if number.bits <= 4 else 8
    signed = codes.dtype == torch.int8
    if bits == 8:
        shift = 0 if signed or number.bits < 8 else 128
        return "ints8", _filled((codes.to(torch.int16) - shift).to(torch.int8), 0), shift
    middle = 1 << (bits - 1)
    codes = (codes.to(torch.int16) + middle if signed else codes).to(torch.uint8)
    return ("ints2" if bits == 2 else "ints4"), _filled(codes, middle), 0 if signed else middle


def _filled(codes: torch.Tensor, code: int) -> torch.Tensor:
    return torch.nn.functional.pad(codes, (0, -codes.shape[1] % COLUMNS), value=code).contiguous()


def _packed(codes: torch.Tensor, kind: str) -> torch.Tensor:
    """uint8 [n, kpad * bits / 8] of codes of 4 or 2 bits; others as they are."""
    bits = {"ints4": 4, "table": 4, "pairs": 4, "ints2": 2}.get(kind)
    if bits is None:
        return codes
    if kind == "pairs":
        return codes[:, 0::2] | codes[:, 1::2] << 4
    parts = codes.view(codes.shape[0], -1, 8 // bits, COLUMNS * bits // 8)
    packed = parts[:, :, 0].clone()
    for part in range(1, 8 // bits):
        packed |= parts[:, :, part] << (part * bits)
    return packed.reshape(codes.shape[0], -1).contiguous()


def _scales(tensor: QTensor, shift: int, device: torch.device | str) -> tuple[torch.Tensor | None, torch.Tensor | None, int, int]:
    """(scales, offsets, group, rows_alike) of a GpuWeight; the outer scale stays apart."""
    if tensor.scales is None:
        return None, None, 0, 1
    spec, (n, k) = tensor.spec, tensor.shape
    group = spec.size if spec.granularity == "group" else spec.columns if spec.granularity == "block" else 0

    def spread(array: Any) -> torch.Tensor:
        values = _on(array, device).to(torch.float32)
        if spec.granularity == "block":
            values = values.repeat_interleave(spec.size, dim=0)[:n]
        return values.expand(n, values.shape[1]).T.contiguous()

    scales, offsets = spread(tensor.scales), None
    if tensor.zeros is not None:
        offsets = scales * (shift - spread(tensor.zeros))
    elif tensor.offsets is not None:
        offsets = spread(tensor.offsets) + scales * shift
    elif shift:
        raise KernelError(f"is asymmetric {spec.format} and comes without zero points", where="triton")
    alike = spec.size if spec.granularity == "block" else n if spec.granularity == "tensor" else 1
    return _narrow(scales, spec.scale_format), offsets, 0 if group >= k else group, alike


def _narrow(scales: torch.Tensor, scale_format: str) -> torch.Tensor:
    """Scales in the narrowest type that holds them exactly."""
    if scale_format == "e8m0":
        exponents = (scales.view(torch.int32) >> 23).to(torch.uint8)
        if bool(torch.equal(linear_codes.scale_values(exponents), scales)):
            return exponents
    for dtype in {"fp16": (torch.float16,), "bf16": (torch.bfloat16,), "fp8e4m3": (torch.bfloat16,), "e8m0": (torch.bfloat16,)}.get(scale_format, ()):
        if bool(torch.equal(scales.to(dtype).to(torch.float32), scales)):
            return scales.to(dtype)
    return scales


def _as_units_read(scales: torch.Tensor, format: str) -> torch.Tensor:
    """Scales of FP4 weights as FP4 units take them. Raises KernelError where they are no such numbers."""
    if format == "mxfp4" and scales.dtype == torch.uint8:
        return scales
    narrow = scales.to(torch.float32).to(torch.float8_e4m3fn)
    if format == "mxfp4" or not bool(torch.equal(narrow.to(torch.float32), scales.to(torch.float32))):
        raise KernelError(f"has scales that {format} has no room for", where="triton", remedy="leave activations in 16 bits")
    return narrow
