"""QTensor: a tensor of numbers in a few bits, in ONE canonical layout; `quantize` makes one, `join` stacks the rows of several.

Whatever a file or a kernel does with bits, between them a quantized tensor is this: one code per element (never packed), scales as
float32, and a TensorSpec that says what they mean. Packing is the business of file formats and kernels.
"""

from __future__ import annotations

from ._quantize import NonFiniteError, quantize, round_scales, unfitted
from ._rotation import rotate, rotation_of
from ._tensor import QTensor, join

__all__ = ["NonFiniteError", "QTensor", "join", "quantize", "rotate", "rotation_of", "round_scales", "unfitted"]
