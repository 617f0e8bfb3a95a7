"""QTensor: a tensor of numbers in a few bits, in ONE canonical layout.

Whatever a file or a kernel does with bits, between them a quantized tensor is this: one code per element (never packed), scales as
float32, and a TensorSpec that says what they mean. Packing is the business of file formats and kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from . import formats
from .errors import OctavoError, SchemeError
from .schemes import TensorSpec

Array = Any  # an array of the array-API standard: NumPy here, torch in the torch backend

CHUNK = 1 << 17  # elements worked on at a time: temporaries stay in the L2 cache
SMALLEST_NORMAL = {"fp16": 2.0**-14, "bf16": 2.0**-126}  # below it a scale would lose precision
LARGEST_SCALE = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}


class NonFiniteError(OctavoError):
    """A tensor to be quantized holds NaN or infinity; the message names the first place."""

    exit_code = 2


@dataclass(frozen=True)
class QTensor:
    """Codes, scales and their meaning. value = (decode(code) - zero) * (scale * outer), or decode(code) * scale + offset, in float32.

    codes    [*shape], one per element: float32, float16 or uint16 (bfloat16 bits) for unquantized formats (no scales then);
             int8 for symmetric integers; uint8 for integers with a zero point or an offset, for tables and for small floats.
    scales   float32, 2-D, by granularity of the spec for a weight [out, in]: tensor [1, 1]; channel [out, 1];
             group [out, ceil(in/g)]; block [ceil(out/r), ceil(in/c)]. A scale may be negative, and 0 where all values are.
    zeros    like scales (whole numbers as float32), or None
    offsets  like scales (float32, added after scaling: GGUF's minimums), or None; never together with zeros
    outer    float32 scalar array of a two-level format (NVFP4), or None
    shape    (out, in) or (n,)
    """

    codes: Array
    scales: Array | None
    spec: TensorSpec
    shape: tuple[int, ...]
    zeros: Array | None = None
    offsets: Array | None = None
    outer: Array | None = None

    def dequantize(self) -> Array:
        """float32 array of `shape`: the numbers that this tensor stands for."""
        decode = formats.get(self.spec.format).decode
        if self.scales is None:
            return decode(self.codes)
        xp = array_namespace(self.codes)
        rows, width = (1, *self.shape)[-2:]
        codes = xp.reshape(self.codes, (rows, width))
        scales = self.scales if self.outer is None else self.scales * self.outer
        values = xp.empty((rows, width), dtype=xp.float32, device=device(codes))
        for part in _chunks(rows, width):
            chunk = decode(codes[part])
            if self.zeros is not None:
                chunk = chunk - _spread(self.zeros, self.spec, part, width)
            chunk = chunk * _spread(scales, self.spec, part, width)
            values[part] = chunk if self.offsets is None else chunk + _spread(self.offsets, self.spec, part, width)
        return xp.reshape(values, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the numbers need when packed at their bits, scales and zeros at their stored width included."""
        return self.spec.packed_bytes(self.shape)


def quantize(x: Array, spec: TensorSpec, *, outer: float | None = None) -> QTensor:
    """x [out, in] or [n], any float type, in the precision of `spec`.

    Scales come from the largest magnitude (or the smallest and largest value, with zero points) of each cell, are rounded to
    `spec.scale_format`, and only then the codes are computed. Where float16 scales would overflow or lose precision, this tensor's scales
    are float32, which the spec of the result records. A cell of zeros has scale 0. `outer` fixes the second-level scale of NVFP4 (to
    quantize a tensor piece by piece); it comes from the whole of x otherwise.

    For scales per row or group, quantizing slices of rows gives the same codes as the whole.
    Raises NonFiniteError where x holds NaN or infinity.
    """
    xp = array_namespace(x)
    number = formats.get(spec.format)
    shape = tuple(x.shape)
    if len(shape) not in (1, 2):
        raise SchemeError(f"cannot quantize a tensor of shape {shape}", remedy="tensors have one or two dimensions here")
    rows, width = (1, *shape)[-2:]
    flat = xp.reshape(x, (rows, width))
    low, high = _extremes(flat, spec)
    if not spec.quantized:
        return QTensor(number.encode(x), None, spec, shape)

    second = None
    if number.two_level:
        largest = float(xp.max(xp.maximum(high, -low)))
        second = xp.asarray(largest / (number.high * formats.get(spec.scale_format).high) if outer is None else outer, dtype=xp.float32)
    scales, zeros = _scales(low, high, spec, second)
    rounded = _round_scales(scales, spec.scale_format)
    if rounded is None:
        spec, rounded = replace(spec, scale_format="fp32"), scales
    actual = rounded if second is None else rounded * second
    codes = xp.empty((rows, width), dtype=xp.uint8 if zeros is not None or number.kind != "int" else xp.int8, device=device(x))
    for part in _chunks(rows, width):
        scale = _spread(actual, spec, part, width)
        chunk = xp.astype(flat[part], xp.float32) / xp.where(scale == 0, xp.asarray(1, dtype=xp.float32), scale)
        if zeros is None:
            codes[part] = number.encode(chunk)
        else:
            codes[part] = xp.astype(xp.clip(xp.round(chunk) + _spread(zeros, spec, part, width), 0, 2**number.bits - 1), xp.uint8)
    return QTensor(xp.reshape(codes, shape), rounded, spec, shape, zeros=zeros, outer=second)


def join(parts: Sequence[QTensor]) -> QTensor:
    """The tensor whose rows are those of `parts`, one after another: pieces that were quantized separately, with scales per row or group."""
    first = parts[0]
    if len(parts) == 1:
        return first
    xp = array_namespace(first.codes)
    specs = {part.spec for part in parts}
    if len({(s.format, s.granularity, s.size, s.symmetric) for s in specs}) > 1 or first.spec.granularity in ("tensor", "block"):
        raise SchemeError(f"cannot join tensors of {len(specs)} different precisions or with scales that cross rows")

    def stack(field: str) -> Array | None:
        arrays = [getattr(part, field) for part in parts]
        return None if arrays[0] is None else xp.concat(arrays, axis=0)

    spec = first.spec if len(specs) == 1 else replace(first.spec, scale_format="fp32")
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return QTensor(stack("codes"), stack("scales"), spec, shape, stack("zeros"), stack("offsets"), first.outer)


def _chunks(rows: int, width: int) -> list[slice]:
    step = max(1, CHUNK // max(1, width))
    return [slice(a, min(a + step, rows)) for a in range(0, rows, step)]


def _cell(spec: TensorSpec, width: int) -> tuple[int, int]:
    """(rows, columns) that share a scale; rows 0 means all."""
    if spec.granularity in ("none", "tensor"):
        return 0, width
    if spec.granularity == "group":
        return 1, spec.size
    return (spec.size, spec.columns) if spec.granularity == "block" else (1, width)


def _spread(array: Array, spec: TensorSpec, part: slice, width: int) -> Array:
    """Scales (or zeros) of rows `part`, one per element or broadcastable to [rows, width]."""
    xp = array_namespace(array)
    rows, columns = _cell(spec, width)
    if rows == 0:
        return array
    if rows == 1:
        mine = array[part]
    else:
        first = part.start // rows
        mine = xp.repeat(array[first : -(-part.stop // rows)], rows, axis=0)[part.start - first * rows : part.stop - first * rows]
    return mine if mine.shape[1] == 1 else xp.repeat(mine, columns, axis=1)[:, :width]


def _extremes(x: Array, spec: TensorSpec) -> tuple[Array, Array]:
    """(smallest, largest) value of each cell, float32, in the shape of the scales. Raises NonFiniteError."""
    xp = array_namespace(x)
    rows, width = x.shape
    cell_rows, columns = _cell(spec, width)
    low, high = [], []
    for part in _chunks(rows, width):
        chunk = xp.astype(x[part], xp.float32)
        low.append(_reduce(xp.min, chunk, columns))
        high.append(_reduce(xp.max, chunk, columns))
    if not low:
        return xp.zeros((rows, 1), dtype=xp.float32), xp.zeros((rows, 1), dtype=xp.float32)
    lows, highs = xp.concat(low, axis=0), xp.concat(high, axis=0)
    if not bool(xp.all(xp.isfinite(lows) & xp.isfinite(highs))):
        _refuse(x)
    if cell_rows == 0:
        return xp.min(lows, axis=0, keepdims=True), xp.max(highs, axis=0, keepdims=True)
    if cell_rows == 1:
        return lows, highs
    cuts = range(0, rows, cell_rows)
    return (xp.concat([xp.min(lows[a : a + cell_rows], axis=0, keepdims=True) for a in cuts], axis=0),
            xp.concat([xp.max(highs[a : a + cell_rows], axis=0, keepdims=True) for a in cuts], axis=0))


def _reduce(function: Any, x: Array, columns: int) -> Array:
    """min or max over runs of `columns` of each row: [rows, ceil(width / columns)]. NaN wins, as both propagate it."""
    xp = array_namespace(x)
    rows, width = x.shape
    whole = width // columns
    done = [function(xp.reshape(x[:, : whole * columns], (rows, whole, columns)), axis=2)] if whole else []
    if width % columns:
        done.append(function(x[:, whole * columns :], axis=1, keepdims=True))
    return done[0] if len(done) == 1 else xp.concat(done, axis=1)


def _refuse(x: Array) -> None:
    xp = array_namespace(x)
    row, column = (int(i[0]) for i in xp.nonzero(~xp.isfinite(xp.astype(x, xp.float32))))
    raise NonFiniteError(f"holds {float(x[row, column])} at row {row}, column {column}, which no quantized format can stand for",
                         remedy="the weights are damaged: fetch them again")


def _scales(low: Array, high: Array, spec: TensorSpec, outer: Array | None) -> tuple[Array, Array | None]:
    """(scales, zeros) of cells with these extremes, before rounding to the scale format; zeros only for asymmetric specs."""
    xp = array_namespace(low)
    number = formats.get(spec.format)
    largest = xp.maximum(high, -low)
    zero = xp.asarray(0, dtype=xp.float32)
    if not spec.symmetric:
        steps = 2**number.bits - 1
        low, high = xp.minimum(low, zero), xp.maximum(high, zero)  # zero stays exact
        scales = (high - low) / steps
        return scales, xp.clip(xp.round(-low / xp.where(scales == 0, xp.asarray(1, dtype=xp.float32), scales)), 0, steps)
    if number.kind == "int" and -number.low > number.high:
        # One more code below zero than above: the cell's extreme, whatever its sign, takes that code, as in ggml's Q4_0.
        return xp.where(high > -low, high, low) / number.low, None
    if spec.scale_format == "e8m0":
        # The shared exponent of the specification: floor(log2(largest)) - exponent of the largest element. Powers of two divide exactly.
        return largest / 2.0 ** int(np.floor(np.log2(number.high))), None
    return largest / number.high if outer is None else largest / number.high / xp.where(outer == 0, xp.asarray(1, dtype=xp.float32), outer), None


def _round_scales(scales: Array, scale_format: str) -> Array | None:
    """Scales as the format stores them, float32; None where float16 or bfloat16 cannot hold them."""
    xp = array_namespace(scales)
    if scale_format == "fp32":
        return scales
    if scale_format in SMALLEST_NORMAL:
        size = xp.abs(scales)
        if bool(xp.any((size > LARGEST_SCALE[scale_format]) | ((size > 0) & (size < SMALLEST_NORMAL[scale_format])))):
            return None
    number = formats.get(scale_format)
    return number.decode(number.encode(scales))
