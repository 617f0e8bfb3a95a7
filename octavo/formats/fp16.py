"""FP16.

What it is: IEEE 754 binary16, 1 sign, 5 exponent and 10 mantissa bits. Codes are float16 arrays; there are no scales.
When to choose it: for the scales of groups (2 bytes, 11 bits of precision), and for models that were trained in it.
Limits: overflows to infinity above 65504, and loses precision below 6.1e-5.
Source: IEEE 754-2019.
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from ._number import Array, NumberFormat
from .fp32 import to_float32


def to_float16(x: Array) -> Array:
    xp = array_namespace(x)
    if isinstance(x, np.ndarray):
        with np.errstate(over="ignore"):  # to infinity, as documented
            return x.astype(np.float16)
    return xp.astype(x, xp.float16)


FORMAT = NumberFormat("fp16", 16, "float", -65504.0, 65504.0, 2.0**-24, to_float16, to_float32,
                      granularity="none", scaled=False, aliases=("float16", "f16", "half"))
