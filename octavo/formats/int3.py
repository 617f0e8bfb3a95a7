"""INT3.

What it is: integers -4..3, or 0..7 with a zero point.
When to choose it: large models (30 B and up) in little memory, with GPTQ or better.
Limits: visible loss with round-to-nearest; no hardware multiplies it, kernels widen it to 8 bits.
Source: arXiv 2210.17323 (GPTQ).
"""

from __future__ import annotations

from ._integer import decode_integer, encode_signed
from ._number import NumberFormat

FORMAT = NumberFormat("int3", 3, "int", -4, 3, 1, encode_signed(-4, 3), decode_integer,
                      granularity="group", size=128, scale_format="fp16", aliases=("3", "i3"))
