"""NVFP4.

What it is: E2M1 elements in groups of 16 with an FP8 E4M3 scale each, under one float32 scale of the tensor.
When to choose it: weights, or weights and activations, on Blackwell; the best-kept 4-bit float.
Limits: two levels of scales; native on Blackwell only.
Source: NVIDIA, "Introducing NVFP4"; layout as in compressed-tensors' nvfp4-pack-quantized and ModelOpt.
"""

from __future__ import annotations

from ._minifloat import E2M1, E2M1_VALUES
from ._number import NumberFormat

FORMAT = NumberFormat("nvfp4", 4, "table", -6.0, 6.0, 0.5, E2M1.encode, E2M1.decode, granularity="group", size=16, scale_format="fp8e4m3",
                      two_level=True, table=E2M1_VALUES)
