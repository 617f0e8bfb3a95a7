"""Round to nearest, with the scale that each cell's values fit best."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from .. import formats
from ..errors import OctavoError, SchemeError
from ..formats import NumberFormat
from ..schemes import TensorSpec
from ._cells import cell, chunks, extremes, flattened, grouped, per_row
from ._rotation import rotate
from ._tensor import QTensor

Array = Any

SMALLEST_SCALE = {"fp16": 2.0**-14, "bf16": 2.0**-126}  # below it a scale would lose precision
LARGEST_SCALE = {"fp16": 32752.0, "bf16": 1.6e38}  # half of the largest: fitting may widen a scale a little

# Fitting tries these parts of the full range: with few levels, clipping the outermost values lets all others be rounded finer. With a
# least-squares scale for each, two or three of them are as good as twenty (measured on SmolLM2's weights; LOG.md has the numbers).
FIT_INT = {2: (0.95, 0.8, 0.65), 3: (1.0, 0.9, 0.8), 4: (1.04, 0.98, 0.92, 0.86), 5: (1.0, 0.96)}
FIT_ROW = (1.0, 0.86, 0.74, 0.64)  # cells of more than WIDE elements have longer tails
FIT_TABLE = (1.0, 0.92)
FIT_COARSE = {"fp8e4m3": (1.12, 1.0, 0.93, 0.86)}  # scales too coarse for least squares: neighbours are compared
WIDE = 512


class NonFiniteError(OctavoError):
    """A tensor to be quantized holds NaN or infinity; the message names the first place."""

    exit_code = 2


def quantize(x: Array, spec: TensorSpec, *, outer: float | None = None, extent: tuple[float, float] | None = None, strict: bool = False,
             rotation: int = 0) -> QTensor:
    """Round to nearest, with fitted scales: x [out, in] or [n], any float type, in the precision of `spec`.

    Scales come from the largest magnitude of each cell (from smallest and largest value, with zero points), are rounded to
    `spec.scale_format`, and only then the codes are computed. Where float16 scales would overflow or lose precision, this tensor's scales
    are float32, which the spec of the result records. A cell of zeros has scale 0.

    Static symmetric specs of at most 5 bits with scales per row or group fit their scales: of a few clipped ranges the one with the least
    error is taken. Dynamic specs (activations, cache) never do: they are computed at every step.

    `outer` fixes the second-level scale of NVFP4 (to quantize a tensor piece by piece); it comes from the whole of x otherwise.
    `extent`, the (smallest, largest) value of the whole tensor, does the same for one scale per tensor, and gives `outer` where that is needed.
    `strict`: scales stay in the spec's format, whatever precision that has for them (a file has no room for wider ones).
    `rotation`: x is rotated first, in blocks of so many inputs (see `rotate`), which the result says; 0: not at all.
    For scales per row or group, quantizing slices of rows gives the same codes as the whole.
    Raises NonFiniteError where x holds NaN or infinity.
    """
    xp = array_namespace(x)
    if rotation:
        return replace(quantize(rotate(x, rotation), spec, outer=outer, extent=extent, strict=strict), rotation=rotation)
    number = formats.get(spec.format)
    flat, low, high = _extremes(x, spec, number)
    if not spec.quantized:
        return QTensor(_encode_plain(flat, number, tuple(x.shape)), None, spec, tuple(x.shape))
    wanted, scales, zeros, second, spec = _full_range(low, high, spec, number, outer, extent, strict)
    rows, width = flat.shape
    cell_rows, columns = cell(spec, width)
    ratios = _ratios(spec, number, columns) if cell_rows == 1 else ()

    codes = xp.empty((rows, width), dtype=_code_type(xp, number, zeros), device=device(x))
    for part in chunks(rows, width, x):
        chunk = grouped(xp.astype(flat[part], xp.float32), columns)
        zero = None if zeros is None else per_row(zeros, spec, part)
        if ratios:
            scales[part] = _fit(chunk, wanted[part], spec, number, second, ratios)
        scale = per_row(scales if second is None else scales * second, spec, part)
        codes[part] = flattened(_encode(chunk / _nonzero(scale), number, zero), width)
    return QTensor(xp.reshape(codes, tuple(x.shape)), scales, spec, tuple(x.shape), zeros=zeros, outer=second)


def unfitted(x: Array, spec: TensorSpec) -> tuple[QTensor, tuple[float, ...]]:
    """As `quantize` before it fits scales or rounds: (scales and zero points of the full range, with codes of 0; the parts of the range that it would try).
    For methods that search both themselves. Raises as `quantize`."""
    number = formats.get(spec.format)
    flat, low, high = _extremes(x, spec, number)
    _, scales, zeros, second, spec = _full_range(low, high, spec, number, None, None, False)
    xp, (cell_rows, columns) = array_namespace(x), cell(spec, flat.shape[1])
    codes = xp.zeros(x.shape, dtype=_code_type(xp, number, zeros), device=device(x))
    return QTensor(codes, scales, spec, tuple(x.shape), zeros=zeros, outer=second), _ratios(spec, number, columns) if cell_rows == 1 else ()


def _extremes(x: Array, spec: TensorSpec, number: NumberFormat) -> tuple[Array, Array, Array]:
    """(x [rows, width], smallest, largest value of each cell), of what can be rounded."""
    xp = array_namespace(x)
    if number.kind == "trellis":
        raise SchemeError("codes of a trellis depend on each other: they are searched, not rounded one by one", where=spec.format,
                          remedy="octavo quantize MODEL OUT --scheme W" + spec.format + " --method trellis --to octavo")
    if len(x.shape) not in (1, 2):
        raise SchemeError(f"cannot quantize a tensor of shape {tuple(x.shape)}", remedy="tensors have one or two dimensions here")
    flat = xp.reshape(x, (1, *x.shape)[-2:])
    low, high = extremes(flat, spec)
    if not bool(xp.all(xp.isfinite(low) & xp.isfinite(high))):
        _refuse(flat)
    return flat, low, high


def _full_range(low: Array, high: Array, spec: TensorSpec, number: NumberFormat, outer: float | None, extent: tuple[float, float] | None,
                strict: bool) -> tuple[Array, Array, Array | None, Array | None, TensorSpec]:
    """(scales of the full range, the same as stored, zeros, second level, the spec with the scale format that has room for them)."""
    xp = array_namespace(low)
    second = None
    if extent is not None and spec.granularity in ("none", "tensor"):
        low, high = (xp.full_like(low, end) for end in extent)
    if number.two_level:
        largest = max(extent[1], -extent[0]) if extent is not None else float(xp.max(xp.maximum(high, -low))) if low.shape[0] else 0.0
        natural = largest / (number.high * formats.get(spec.scale_format).high)
        second = xp.asarray(outer if outer is not None else natural if spec.dynamic else _second_level(natural), dtype=xp.float32)
    wanted, zeros = _scales(low, high, spec, second)
    if not strict and not _fits(wanted, spec.scale_format):
        spec = replace(spec, scale_format="fp32")
    return wanted, round_scales(wanted, spec.scale_format), zeros, second, spec


def _code_type(xp: Any, number: NumberFormat, zeros: Array | None) -> Any:
    return xp.uint8 if zeros is not None or number.kind != "int" else xp.int8


def _second_level(natural: float) -> float:
    """The next float32 from `natural` on that means the same to readers that multiply by it (ModelOpt) and to readers that divide by its stored
    reciprocal (compressed-tensors): all scales, whose significands are eighths, come out equal in float32. A few units in the last place."""
    if not 2.0**-100 < natural < 2.0**100:
        return natural
    tried = np.float32(natural) + np.spacing(np.float32(natural)) * np.arange(4096, dtype=np.float32)
    divisors = (1 / tried.astype(np.float64)).astype(np.float32)
    eighths = np.arange(8, 16, dtype=np.float32)[:, None]
    same = (eighths * tried == eighths / divisors).all(axis=0)
    return float(tried[np.argmax(same)])


def round_scales(scales: Array, scale_format: str) -> Array:
    """Scales as the format stores them, as float32."""
    if scale_format == "fp32":
        return scales
    number = formats.get(scale_format)
    return number.decode(number.encode(scales))


def _encode(t: Array, number: NumberFormat, zeros: Array | None) -> Array:
    """Codes of values that are already divided by their scale."""
    if zeros is None:
        return number.encode(t)
    xp = array_namespace(t)
    return xp.astype((xp.round(t) + zeros).clip(0, 2**number.bits - 1), xp.uint8)


def _encode_plain(x: Array, number: NumberFormat, shape: tuple[int, ...]) -> Array:
    """Codes of a format without scales, piece by piece."""
    xp = array_namespace(x)
    parts = [number.encode(x[part]) for part in chunks(x.shape[0], x.shape[1], x)]
    return xp.reshape(xp.concat(parts, axis=0) if parts else number.encode(x), shape)


def _nearest(t: Array, number: NumberFormat) -> Array:
    """The values, in units of the scale, that t would be rounded to."""
    if number.kind == "int":
        return array_namespace(t).round(t).clip(number.low, number.high)
    return number.decode(number.encode(t))


def _nonzero(scale: Array) -> Array:
    """The divisor for a scale: 1 where it is 0, and all values of the cell with it."""
    xp = array_namespace(scale)
    return xp.where(scale == 0, xp.asarray(1, dtype=xp.float32), scale)


def _ratios(spec: TensorSpec, number: NumberFormat, columns: int) -> tuple[float, ...]:
    """The parts of the full range to try; none where the full range measured as good or better: from 6 bits on, with zero points, and for
    powers of two (where the specification fixes the scale)."""
    if spec.dynamic or spec.bits > 5 or not spec.symmetric or spec.scale_format == "e8m0":
        return ()
    if spec.scale_format in FIT_COARSE:
        return FIT_COARSE[spec.scale_format]
    if columns > WIDE:
        return FIT_ROW
    return FIT_INT[spec.bits] if number.kind == "int" else FIT_TABLE


def _fit(x: Array, wanted: Array, spec: TensorSpec, number: NumberFormat, outer: Array | None, ratios: tuple[float, ...]) -> Array:
    """The best scales [rows, groups] for x [rows, groups, columns], rounded to the scale format.

    Best is the least squared error weighted by |x|: the plain squared error prefers scales that clip the few large weights, and the model
    gets worse by it (LOG.md has the numbers). Rounding x/s gives values v; with t = x/s and sums weighted by |x|, the scale that brings s*v
    closest to x is s * (v.t)/(v.v), and what it leaves is |x|^2 - (s v.t)^2 / v.v: the candidate with the largest (s v.t)^2 / v.v wins.
    Where scales are so coarse that rounding them would undo this, each rounded candidate is judged by its own error, |x|^2 + s^2 (v.v - 2 v.t).
    """
    xp = array_namespace(x)
    coarse = spec.scale_format in FIT_COARSE
    base = _nonzero(wanted if outer is None else wanted * outer)
    unclipped = x / base[..., None]  # in units of the unclipped scale nothing overflows
    importance = xp.abs(unclipped)
    scales, best = wanted, None
    for ratio in ratios:
        if coarse:
            tried = round_scales(wanted * ratio, spec.scale_format)
            size = (tried if outer is None else tried * outer) / base
            t = unclipped / _nonzero(size)[..., None]
        else:
            tried, size, t = wanted * ratio, ratio, unclipped * (1 / ratio)
        v = _nearest(t, number)
        weighted = v * importance
        vt, vv = xp.vecdot(weighted, t), xp.vecdot(weighted, v)
        if coarse:
            gain, fitted = size**2 * (2 * vt - vv), tried
        else:
            quotient = vt / _nonzero(vv)
            gain, fitted = size**2 * vt * quotient, xp.where(vv > 0, tried * quotient, tried)
        if best is None:
            scales, best = fitted, gain
        else:
            better = gain > best
            scales, best = xp.where(better, fitted, scales), xp.where(better, gain, best)
    return scales if coarse else round_scales(scales, spec.scale_format)


def _fits(scales: Array, scale_format: str) -> bool:
    """Whether float16 or bfloat16 scales would keep their precision."""
    if scale_format not in SMALLEST_SCALE:
        return True
    xp = array_namespace(scales)
    size = xp.abs(scales)
    return not bool(xp.any((size > LARGEST_SCALE[scale_format]) | ((size > 0) & (size < SMALLEST_SCALE[scale_format]))))


def _scales(low: Array, high: Array, spec: TensorSpec, outer: Array | None) -> tuple[Array, Array | None]:
    """(scales, zeros) of cells with these extremes, before rounding to the scale format; zeros only for asymmetric specs."""
    xp = array_namespace(low)
    number = formats.get(spec.format)
    largest = xp.maximum(high, -low)
    if not spec.symmetric:
        zero, steps = xp.asarray(0, dtype=xp.float32), 2**number.bits - 1
        low, high = xp.minimum(low, zero), xp.maximum(high, zero)  # zero stays exact
        scales = high / steps - low / steps
        return scales, xp.round(xp.abs(low / _nonzero(scales))).clip(0, steps)
    if number.kind == "int" and -number.low > number.high:
        # One more code below zero than above: the cell's extreme, whatever its sign, takes that code, as in ggml's Q4_0.
        return xp.where(high > -low, high, low) / number.low, None
    if spec.scale_format == "e8m0":
        # The specification's shared exponent: floor(log2(largest)) - exponent of the largest element. Powers of two divide exactly.
        return largest / 2.0 ** math.floor(math.log2(number.high)), None
    return largest / number.high if outer is None else largest / number.high / _nonzero(outer), None


def _refuse(x: Array) -> None:
    xp = array_namespace(x)
    row, column = (int(i[0]) for i in xp.nonzero(~xp.isfinite(xp.astype(x, xp.float32))))
    raise NonFiniteError(f"holds {float(x[row, column])} at row {row}, column {column}, which no quantized format can stand for",
                         remedy="the weights are damaged: fetch them again")
