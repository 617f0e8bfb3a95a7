"""Signed integers of 2 to 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace

Array = Any


def encode_signed(low: int, high: int) -> Callable[[Array], Array]:
    """An encoder of float32 -> int8 in low..high: round half to even, saturate."""

    def encode(x: Array) -> Array:
        xp = array_namespace(x)
        return xp.astype(xp.round(x).clip(low, high), xp.int8)  # the method: array_api_compat's function is several times slower

    return encode


def decode_integer(codes: Array) -> Array:
    """int8 or uint8 codes -> float32, the integer itself."""
    xp = array_namespace(codes)
    return xp.astype(codes, xp.float32)
