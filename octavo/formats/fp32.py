"""FP32.

What it is: IEEE 754 binary32, 1 sign, 8 exponent and 23 mantissa bits. Codes are float32 arrays; there are no scales.
When to choose it: as the reference that everything else is compared with, and for tensors too small to matter.
Limits: twice the memory and traffic of bf16, for differences that no benchmark of language models sees.
Source: IEEE 754-2019.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from ._number import Array, NumberFormat


def to_float32(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.astype(x, xp.float32)


FORMAT = NumberFormat("fp32", 32, "float", -3.4028234663852886e38, 3.4028234663852886e38, 2.0**-149, to_float32, to_float32,
                      granularity="none", scaled=False, aliases=("32", "float32", "f32"))
