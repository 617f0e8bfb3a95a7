"""MXFP4.

What it is: E2M1 elements (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) in groups of 32 that share a power of two (E8M0).
When to choose it: checkpoints of gpt-oss; weights for GPUs with native FP4.
Limits: power-of-two scales cost quality against NVFP4 or INT4 with real scales.
Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.2, 5.3 and 6.3.
"""

from __future__ import annotations

from ._minifloat import E2M1, E2M1_VALUES
from ._number import NumberFormat

FORMAT = NumberFormat("mxfp4", 4, "table", -6.0, 6.0, 0.5, E2M1.encode, E2M1.decode, granularity="group", size=32, scale_format="e8m0",
                      table=E2M1_VALUES)
