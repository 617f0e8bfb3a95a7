"""FP4 (bitsandbytes).

What it is: a sign bit and 8 magnitudes, 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1, in bitsandbytes' order of codes.
When to choose it: to read and write checkpoints of bitsandbytes with `bnb_4bit_quant_type="fp4"`.
Limits: coarser than NF4 for weights; not the FP4 that GPUs multiply (that is E2M1: see mxfp4 and nvfp4).
Source: bitsandbytes, functional.py, `create_fp4_map` (its 4-bit default).
"""

from __future__ import annotations

import numpy as np

from ._number import Array, NumberFormat
from ._table import look_up, nearest

_STEPS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
MAGNITUDES = tuple(step / 12.0 for step in _STEPS)
VALUES = MAGNITUDES + tuple(-m for m in MAGNITUDES)


def encode(x: Array) -> Array:
    return nearest(VALUES, x)


def decode(codes: Array) -> Array:
    return look_up(np.array(VALUES, np.float32), codes)


FORMAT = NumberFormat("fp4", 4, "table", -1.0, 1.0, MAGNITUDES[1], encode, decode, granularity="group", size=64, scale_format="fp16",
                      table=VALUES, aliases=("bnb_fp4",))
