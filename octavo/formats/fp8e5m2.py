"""FP8 E5M2.

What it is: 1 sign, 5 exponent and 2 mantissa bits, bias 15, with infinities and NaNs as in IEEE 754; largest finite 57344.
When to choose it: gradients, and caches of keys and values whose range is unknown: it is an fp16 cut to 8 bits.
Limits: 3 bits of precision, less than E4M3 with a scale. Encoding saturates: infinities are read, never written.
Source: arXiv 2209.05433; OCP 8-bit Floating Point Specification (OFP8) 1.0, section 5.
"""

from __future__ import annotations

from ._minifloat import E5M2
from ._number import NumberFormat

FORMAT = NumberFormat("fp8e5m2", 8, "float", -E5M2.largest, E5M2.largest, E5M2.tiny, E5M2.encode, E5M2.decode,
                      aliases=("e5m2", "float8_e5m2"))
