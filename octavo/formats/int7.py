"""INT7.

What it is: integers -64..63, or 0..127 with a zero point.
When to choose it: files of other tools that carry it (compressed-tensors has W7A16).
Limits: 7 bits save little over 8 and pack badly.
Source: compressed-tensors' pack-quantized format.
"""

from __future__ import annotations

from ._integer import decode_integer, encode_signed
from ._number import NumberFormat

FORMAT = NumberFormat("int7", 7, "int", -64, 63, 1, encode_signed(-64, 63), decode_integer,
                      granularity="group", size=128, scale_format="fp16", aliases=("7", "i7"))
