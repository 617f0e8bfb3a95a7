"""MXFP8.

What it is: FP8 E4M3 elements in groups of 32 that share a power of two (E8M0).
When to choose it: weights and activations on Blackwell, where it runs at the speed of FP8 with finer scales.
Limits: 8.25 bits a weight; the E5M2 variant of the specification is not written by any tool we read.
Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.2 and 6.3.
"""

from __future__ import annotations

from ._minifloat import E4M3
from ._number import NumberFormat

FORMAT = NumberFormat("mxfp8", 8, "float", -E4M3.largest, E4M3.largest, E4M3.tiny, E4M3.encode, E4M3.decode, granularity="group", size=32,
                      scale_format="e8m0")
