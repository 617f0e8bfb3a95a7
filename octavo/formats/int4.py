"""INT4.

What it is: integers -8..7, or 0..15 with a zero point.
When to choose it: weights of language models where memory or its bandwidth is the limit: a quarter of 16 bits, close in quality with groups of 32 to 128.
Limits: needs scales per group; as activations only after a rotation.
Source: arXiv 2210.17323 (GPTQ), arXiv 2306.00978 (AWQ); llama.cpp's Q4_0 for the asymmetric use of -8.
"""

from __future__ import annotations

from ._integer import decode_integer, encode_signed
from ._number import NumberFormat

FORMAT = NumberFormat("int4", 4, "int", -8, 7, 1, encode_signed(-8, 7), decode_integer,
                      granularity="group", size=128, scale_format="fp16", aliases=("4", "i4"))
