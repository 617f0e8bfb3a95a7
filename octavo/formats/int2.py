"""INT2.

What it is: integers -2..1, or 0..3 with a zero point.
When to choose it: when nothing else fits in memory; experts of a mixture first.
Limits: four levels: round-to-nearest ruins a model; it needs a method that learns the rounding, and small groups.
Source: arXiv 2507.07145 (CCQ), arXiv 2402.02750 (KIVI, for caches).
"""

from __future__ import annotations

from ._integer import decode_integer, encode_signed
from ._number import NumberFormat

FORMAT = NumberFormat("int2", 2, "int", -2, 1, 1, encode_signed(-2, 1), decode_integer,
                      granularity="group", size=128, scale_format="fp16", aliases=("2", "i2"))
