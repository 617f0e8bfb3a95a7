"""Number formats: one file per format, arithmetic only. Each file ends in `FORMAT = NumberFormat(...)`.

Encoders and decoders are written over the array-API standard, so that the same lines run on NumPy and on torch. What a format does not
know: scales, groups, layers, files. Those are `qtensor` and above.
"""

from __future__ import annotations

from functools import cache

from ..errors import UnknownNameError
from ..registry import discover
from ._bits import pack_bits, unpack_bits
from ._number import NumberFormat

__all__ = ["NumberFormat", "formats", "get", "pack_bits", "unpack_bits"]


def formats() -> dict[str, NumberFormat]:
    """Every number format by token."""
    return discover(__name__, "FORMAT")


@cache
def _spellings() -> dict[str, NumberFormat]:
    return {spelling: f for f in formats().values() for spelling in (f.token, *f.aliases)}


def get(token: str) -> NumberFormat:
    """The format of a token or one of its aliases. Raises UnknownNameError with the known tokens."""
    try:
        return _spellings()[token]
    except KeyError:
        raise UnknownNameError("number format", token, list(formats())) from None
