"""NF4.

What it is: 16 values at the quantiles of a normal distribution, normalised to -1..1, with an exact zero.
When to choose it: 4-bit weights without calibration: at equal group size usually better than INT4, and the format of QLoRA.
Limits: a table: no hardware multiplies it, kernels look values up; weights that are not bell-shaped gain nothing.
Source: arXiv 2305.14314 (QLoRA), appendix E; the values are those of bitsandbytes.
"""

from __future__ import annotations

import numpy as np

from ._number import Array, NumberFormat
from ._table import look_up, nearest

VALUES = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
          -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
          0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)


def encode(x: Array) -> Array:
    return nearest(VALUES, x)


def decode(codes: Array) -> Array:
    return look_up(np.array(VALUES, np.float32), codes)


FORMAT = NumberFormat("nf4", 4, "table", -1.0, 1.0, VALUES[8], encode, decode, granularity="group", size=64, scale_format="fp16",
                      table=VALUES, aliases=("normalfloat4",))
