"""IQ4_NL.

What it is: 16 whole numbers from -127 to 113, denser around zero; the 4-bit values of GGUF's IQ4_NL and IQ4_XS.
When to choose it: checkpoints of llama.cpp in these types; else NF4 has the same idea and an exact zero.
Limits: a table without a zero (the smallest value is 1 of 127), not symmetric: a group of zeros needs the scale 0.
Source: kvalues_iq4nl of ggml (ggml-common.h).
"""

from __future__ import annotations

import numpy as np

from ._number import Array, NumberFormat
from ._table import look_up, nearest

VALUES = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)


def encode(x: Array) -> Array:
    return nearest(VALUES, x)


def decode(codes: Array) -> Array:
    return look_up(np.array(VALUES, np.float32), codes)


FORMAT = NumberFormat("iq4nl", 4, "table", -127.0, 113.0, 1.0, encode, decode, granularity="group", size=32, scale_format="fp16", table=VALUES)
