"""FP8 E4M3.

What it is: 1 sign, 4 exponent and 3 mantissa bits, bias 7; the variant without infinities ("fn"): largest 448, S.1111.111 is NaN.
When to choose it: weights and activations on GPUs that multiply it (Ada, Hopper, Blackwell); scales of NVFP4.
Limits: 4 bits of precision. CPUs read weights of it as they are and keep activations in 16 bits; older GPUs emulate it. Values beyond 448 and
infinities saturate.
Source: arXiv 2209.05433; OCP 8-bit Floating Point Specification (OFP8) 1.0, section 5.
"""

from __future__ import annotations

from ._minifloat import E4M3
from ._number import NumberFormat

FORMAT = NumberFormat("fp8e4m3", 8, "float", -E4M3.largest, E4M3.largest, E4M3.tiny, E4M3.encode, E4M3.decode,
                      aliases=("fp8", "fp8e4m3fn", "e4m3", "float8_e4m3fn", "f8"))
