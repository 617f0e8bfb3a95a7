"""INT5.

What it is: integers -16..15, or 0..31 with a zero point.
When to choose it: between 4 and 6 bits where files of GGUF's Q5 types are read, or a mixed plan has half a bit to spend.
Limits: no hardware multiplies it; kernels widen it to 8 bits.
Source: ggml's Q5_0, Q5_1 and Q5_K block types.
"""

from __future__ import annotations

from ._integer import decode_integer, encode_signed
from ._number import NumberFormat

FORMAT = NumberFormat("int5", 5, "int", -16, 15, 1, encode_signed(-16, 15), decode_integer,
                      granularity="group", size=128, scale_format="fp16", aliases=("5", "i5"))
