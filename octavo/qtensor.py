"""QTensor: a tensor of numbers in a few bits, in ONE canonical layout.

Whatever a file or a kernel does with bits, between them a quantized tensor is this: one code per element (never packed), scales as
float32, and a TensorSpec that says what they mean. Packing is the business of file formats and kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .schemes import TensorSpec

Array = Any  # an array of the array-API standard: NumPy here, torch in the torch backend


@dataclass(frozen=True)
class QTensor:
    """Codes, scales and their meaning. value = (decode(code) - zero) * scale * outer, or decode(code) * scale + offset.

    codes    [*shape], one per element: float32, float16 or uint16 (bfloat16 bits) for unquantized formats (no scales then);
             int8 for symmetric integers; uint8 for integers with a zero point or an offset, for tables and for small floats.
    scales   float32, 2-D, by granularity of the spec for a weight [out, in]: tensor [1, 1]; channel [out, 1];
             group [out, ceil(in/g)]; block [ceil(out/r), ceil(in/c)].
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
        from .formats import decode  # numbers live in formats; see formats/__init__.py

        return decode(self)

    @property
    def nbytes(self) -> int:
        """Bytes that the numbers need when packed at their bits, scales and zeros at their stored width included."""
        return self.spec.packed_bytes(self.shape)
