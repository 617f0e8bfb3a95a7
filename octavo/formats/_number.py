"""NumberFormat: what a code of a few bits means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Array = Any  # an array of the array-API standard


@dataclass(frozen=True)
class NumberFormat:
    """How one number is written in `bits` bits. A plug-in of `octavo/formats`.

    token         its name in the grammar of precision, and the name of its file
    kind          "float" (sign, exponent, mantissa), "int", "table" (codes are positions in a list of values), or "trellis" (codes are states)
    low, high     the range of values before scaling
    tiny          the smallest positive value
    encode        float32 values, already divided by their scale -> codes; round to nearest, ties to even; values beyond the range
                  saturate. NaN keeps being NaN where the format has one; elsewhere the caller must refuse it first.
    decode        codes -> float32 values
    granularity, size, scale_format   what a weight of this format gets when its name says no more
    scaled        False for formats that are stored as they are, without scales
    two_level     a float32 scale of the whole tensor on top of the scales of its groups (NVFP4)
    scale_only    a format of scales, not of weights
    code_bits     of a trellis: bits of a code, of which each number of a sequence adds `bits` new ones; 0 elsewhere: a code has `bits`
    table         for formats of at most 4 bits that are no integers: the value of every code
    """

    token: str
    bits: int
    kind: Literal["float", "int", "table", "trellis"]
    low: float
    high: float
    tiny: float
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]
    granularity: str = "channel"
    size: int = 0
    scale_format: str = "fp32"
    scaled: bool = True
    two_level: bool = False
    scale_only: bool = False
    table: tuple[float, ...] | None = None
    code_bits: int = 0
    aliases: tuple[str, ...] = ()
