"""INT6.

What it is: integers -32..31, or 0..63 with a zero point.
When to choose it: sensitive tensors of a mixed plan; close to 8 bits in quality.
Limits: no hardware multiplies it; kernels widen it to 8 bits.
Source: ggml's Q6_K block type.
"""

from __future__ import annotations

from ._integer import decode_integer, encode_signed
from ._number import NumberFormat

FORMAT = NumberFormat("int6", 6, "int", -32, 31, 1, encode_signed(-32, 31), decode_integer,
                      granularity="group", size=128, scale_format="fp16", aliases=("6", "i6"))
