"""E8M0.

What it is: 8 exponent bits and nothing else: the powers of two from 2^-127 to 2^127; code 255 is NaN. A format of scales.
When to choose it: it comes with mxfp4 and mxfp8.
Limits: no zero, no sign. A group of zeros gets the smallest scale.
Source: OCP Microscaling Formats (MX) Specification 1.0, section 5.4.1.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from ._number import Array, NumberFormat


def encode(x: Array) -> Array:
    """Positive float32 -> uint8 codes, the power of two at or below x (the specification's rule for shared scales). NaN is 255."""
    xp = array_namespace(x)
    x = xp.astype(x, xp.float32)
    exponent = (x.view(xp.int32) >> 23) & 0xFF  # a subnormal (field 0) lies below 2^-126: code 0 is the nearest power we have
    code = xp.minimum(exponent, xp.asarray(254, dtype=xp.int32))
    return xp.astype(xp.where(xp.isnan(x), xp.asarray(255, dtype=xp.int32), code), xp.uint8)


def decode(codes: Array) -> Array:
    xp = array_namespace(codes)
    field = xp.astype(codes, xp.int32)
    # 2^-127 is a subnormal of float32: field 0, top mantissa bit.
    bits = xp.where(field == 0, xp.asarray(1 << 22, dtype=xp.int32), field << 23)
    return xp.where(field == 255, xp.asarray(float("nan"), dtype=xp.float32), bits.view(xp.float32))


FORMAT = NumberFormat("e8m0", 8, "float", 2.0**-127, 2.0**127, 2.0**-127, encode, decode, granularity="none", scaled=False, scale_only=True)
