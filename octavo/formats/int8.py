"""INT8.

What it is: signed integers -127..127 (so that the range is symmetric; -128 is read, never written).
When to choose it: weights with a scale per output row and activations with a scale per token (W8A8) are within noise of 16 bits, and
every CPU and GPU multiplies them natively.
Limits: activations with extreme outliers need a transform (SmoothQuant, rotation) or 16 bits.
Source: arXiv 1712.05877 (integer-only inference); arXiv 2208.07339 (LLM.int8) for row-wise scales.
"""

from __future__ import annotations

from ._integer import decode_integer, encode_signed
from ._number import NumberFormat

FORMAT = NumberFormat("int8", 8, "int", -127, 127, 1, encode_signed(-127, 127), decode_integer, aliases=("8", "i8"))
