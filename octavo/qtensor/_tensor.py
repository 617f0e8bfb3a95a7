"""The type QTensor, and how pieces of one are joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import array_namespace, device

from .. import formats
from ..errors import SchemeError
from ..schemes import TensorSpec
from ._cells import cell, chunks, flattened, grouped, per_row
from ._rotation import rotate

Array = Any  # an array of the array-API standard: NumPy here, torch in the torch backend


@dataclass(frozen=True)
class QTensor:
    """Codes, scales and their meaning. value = (decode(code) - zero) * (scale * outer), or decode(code) * scale + offset, in float32.

    codes    [*shape], one per element: float32, float16 or uint16 (bfloat16 bits) for unquantized formats (no scales then);
             int8 for symmetric integers; uint8 for integers with a zero point or an offset, for tables and for small floats; uint16 for the
             states of a trellis.
    scales   float32, 2-D, by granularity of the spec for a weight [out, in]: tensor [1, 1]; channel [out, 1];
             group [out, ceil(in/g)]; block [ceil(out/r), ceil(in/c)]. A scale may be negative, and is 0 where all values are.
    zeros    like scales (float32; whole numbers, except HQQ's), or None
    offsets  like scales (float32, added after scaling: GGUF's minimums), or None; never together with zeros
    outer    float32 or float64 scalar array of a two-level format (NVFP4), or None
    shape    (out, in) or (n,)
    order    int32 [in] or None: column j of the codes (and so of the groups) is input order[j] of the weight (GPTQ's act-order)
    factors  float32 [in] or None, by input (not by column of the codes): inputs are multiplied by them before the codes meet them (AWQ's and
             SmoothQuant's scales where they were not folded into the layer before); so each column of the weight is
    rotation 0, or the block of the Hadamard rotation (qtensor.rotate) of the inputs, after order and factors, before they meet the codes; so each row of
             the weight is
    """

    codes: Array
    scales: Array | None
    spec: TensorSpec
    shape: tuple[int, ...]
    zeros: Array | None = None
    offsets: Array | None = None
    outer: Array | None = None
    order: Array | None = None
    factors: Array | None = None
    rotation: int = 0

    def dequantize(self) -> Array:
        """float32 array of `shape`: the numbers that this tensor stands for."""
        decode = formats.get(self.spec.format).decode
        if self.scales is None:
            return decode(self.codes)
        xp = array_namespace(self.codes)
        rows, width = math.prod(self.shape[:-1]), (1, *self.shape)[-1]
        codes = xp.reshape(self.codes, (rows, width))
        scales = self.whole_scales
        values = xp.empty((rows, width), dtype=xp.float32, device=device(codes))
        columns = cell(self.spec, width)[1]
        for part in chunks(rows, width, codes):
            chunk = decode(grouped(codes[part], columns))
            if self.zeros is not None:
                chunk = chunk - per_row(self.zeros, self.spec, part)
            chunk = chunk * per_row(scales, self.spec, part)
            if self.offsets is not None:
                chunk = chunk + per_row(self.offsets, self.spec, part)
            chunk = flattened(chunk, width)
            if self.rotation:
                chunk = rotate(chunk, self.rotation)
            if self.order is not None:
                chunk = xp.take(chunk, xp.argsort(self.order), axis=1)
            values[part] = chunk if self.factors is None else chunk * self.factors
        return xp.reshape(values, self.shape)

    @property
    def whole_scales(self) -> Array | None:
        """float32 scales with the second level multiplied in (exactly, then rounded once), in the shape of `scales`."""
        if self.scales is None or self.outer is None:
            return self.scales
        xp = array_namespace(self.scales)
        return xp.astype(xp.astype(self.scales, xp.float64) * self.outer, xp.float32)

    @property
    def nbytes(self) -> int:
        """Bytes that the numbers need when packed at their bits, scales and zeros at their stored width included."""
        return self.spec.packed_bytes(self.shape)


def join(parts: Sequence[QTensor]) -> QTensor:
    """The tensor whose rows are those of `parts`, one after another: pieces quantized separately, with scales per row or group.

    Pieces whose scales fell back to float32 make the whole's scale format float32. Raises SchemeError for pieces that do not fit.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    xp = array_namespace(first.codes)
    specs = {part.spec for part in parts}
    if any(part.order is not None or part.factors is not None or part.rotation for part in parts):
        raise SchemeError("cannot join tensors whose inputs are permuted, scaled or rotated")
    if len({(s.format, s.granularity, s.size, s.symmetric) for s in specs}) > 1 or first.spec.granularity in ("tensor", "block"):
        raise SchemeError(f"cannot join tensors of {len(specs)} different precisions, or with scales that cross rows")

    def stack(field: str) -> Array | None:
        arrays = [getattr(part, field) for part in parts]
        return None if arrays[0] is None else xp.concat(arrays, axis=0)

    spec = first.spec if len(specs) == 1 else replace(first.spec, scale_format="fp32")
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return QTensor(stack("codes"), stack("scales"), spec, shape, stack("zeros"), stack("offsets"), first.outer)
