"""BF16.

What it is: the upper half of a float32: 1 sign, 8 exponent and 7 mantissa bits. Codes are uint16 arrays of those bits (NumPy has no
bfloat16); there are no scales.
When to choose it: as what "unquantized" means: models are published in it.
Limits: 8 bits of precision; sums need a wider accumulator.
Source: Intel, BFLOAT16 Hardware Numerics Definition, 338302-001; round to nearest even, NaN stays (a quiet) NaN.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from ._number import Array, NumberFormat


def to_bfloat16(x: Array) -> Array:
    """float32 -> uint16 bits, ties to even."""
    xp = array_namespace(x)
    bits = xp.astype(x, xp.float32).view(xp.int32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding would carry a NaN with a full mantissa into the sign; a NaN is cut off and made quiet instead.
    rounded = xp.where(xp.isnan(x), (bits >> 16) | 0x40, rounded)
    return xp.astype(rounded & 0xFFFF, xp.uint16)


def from_bfloat16(codes: Array) -> Array:
    """uint16 bits -> float32, exact."""
    xp = array_namespace(codes)
    return (xp.astype(codes, xp.int32) << 16).view(xp.float32)


FORMAT = NumberFormat("bf16", 16, "float", -3.3895313892515355e38, 3.3895313892515355e38, 2.0**-133, to_bfloat16, from_bfloat16,
                      granularity="none", scaled=False, aliases=("16", "bfloat16"))
