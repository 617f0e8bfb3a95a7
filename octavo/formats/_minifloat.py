"""Small floats: sign, exponent, mantissa in up to 8 bits. The arithmetic behind fp8e4m3, fp8e5m2 and the elements of mxfp4 and nvfp4."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from ._table import look_up

Array = Any


@dataclass(frozen=True)
class Minifloat:
    """1 sign bit, `exponent` bits, `mantissa` bits; `bias` of the exponent.

    top       the largest finite code without its sign
    nan       the code that NaN becomes, or None when the format has no NaN
    infinity  the code of infinity, or None. Encoding never makes it: values beyond the range saturate.
    """

    exponent: int
    mantissa: int
    bias: int
    top: int
    nan: int | None = None
    infinity: int | None = None

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (self.bits - 1)

    @property
    def tiny(self) -> float:
        """The smallest positive value, a subnormal."""
        return 2.0 ** (1 - self.bias - self.mantissa)

    def value(self, code: int) -> float:
        """The number that a code without sign stands for; codes past `top` other than infinity are NaN."""
        if code > self.top:
            return float("inf") if code == self.infinity else float("nan")
        field, fraction = code >> self.mantissa, code & ((1 << self.mantissa) - 1)
        if field == 0:
            return fraction * self.tiny
        return float((1 + fraction / (1 << self.mantissa)) * 2.0 ** (field - self.bias))

    @property
    def largest(self) -> float:
        return self.value(self.top)

    def encode(self, x: Array) -> Array:
        """float32 -> uint8 codes, ties to even, saturating."""
        xp = array_namespace(x)
        x = xp.astype(x, xp.float32)
        code = self._count_middles(xp.abs(x)) if self.bits <= 4 else self._count_steps(x)
        return code + xp.astype(xp.signbit(x), xp.uint8) * self.sign

    def _count_middles(self, magnitude: Array) -> Array:
        """The code is the number of midpoints between neighbours that the magnitude has passed; on a midpoint the even code wins."""
        xp = array_namespace(magnitude)
        code = xp.zeros(magnitude.shape, dtype=xp.uint8, device=device(magnitude))
        for below in range(self.top):
            middle = (self.value(below) + self.value(below + 1)) / 2
            code += magnitude >= middle if below % 2 else magnitude > middle
        return code

    def _count_steps(self, x: Array) -> Array:
        """The step between neighbours of x is 2^(e - mantissa), e being x's exponent, at least the smallest normal one. Counting steps
        gives the code at once: exponent and mantissa fields join into one integer that grows with the value.
        """
        xp = array_namespace(x)
        magnitude, lowest = xp.abs(x), 1 - self.bias
        # Written this way round, NaN becomes the largest value: an ordinary number until it is replaced below.
        bounded = xp.where(magnitude < self.largest, magnitude, xp.asarray(self.largest, dtype=xp.float32))
        e = xp.maximum((bounded.view(xp.int32) >> 23) - 127, xp.asarray(lowest, dtype=xp.int32))
        step = ((127 + self.mantissa - e) << 23).view(xp.float32)  # 2^(mantissa - e), written as the bits of a float
        code = xp.astype(xp.round(bounded * step), xp.int32) + ((e - lowest) << self.mantissa)
        code = xp.minimum(code, xp.asarray(self.top, dtype=xp.int32))
        if self.nan is not None:
            code = xp.where(xp.isnan(x), xp.asarray(self.nan, dtype=xp.int32), code)
        return xp.astype(code, xp.uint8)

    def decode(self, codes: Array) -> Array:
        """uint8 codes -> float32."""
        return look_up(minifloat_values(self), codes)


@cache
def minifloat_values(form: Minifloat) -> np.ndarray:
    """The value of every code, float32 [2**bits]."""
    positive = np.array([form.value(code) for code in range(form.sign)], np.float32)
    return np.concatenate([positive, -positive])


E4M3 = Minifloat(exponent=4, mantissa=3, bias=7, top=0x7E, nan=0x7F)
E5M2 = Minifloat(exponent=5, mantissa=2, bias=15, top=0x7B, nan=0x7E, infinity=0x7C)
E2M1 = Minifloat(exponent=2, mantissa=1, bias=1, top=7)
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
