"""The rotation of a linear's inputs: Walsh-Hadamard transforms, which spread what is large in a few inputs over many."""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace

Array = Any
BLOCK = 64  # beyond it nothing is gained (docs/two-bits.md)


def rotation_of(width: int) -> int:
    """The usual block for `width` inputs: the largest power of two that divides it, at most 64; 1 is no rotation."""
    return min(width & -width, BLOCK)


def rotate(x: Array, block: int) -> Array:
    """x [..., width] in blocks of `block` values (a power of two that divides the width) that lie width / block apart, so that every block has values
    of all parts of the input (of all heads): each becomes its Walsh-Hadamard transform over sqrt(block). Orthogonal, symmetric, its own inverse.
    """
    xp = array_namespace(x)
    shape = x.shape
    apart = shape[-1] // block
    step = 1
    while step < block:
        pairs = xp.reshape(x, (-1, block // (2 * step), 2, step * apart))
        one, other = pairs[:, :, 0, :], pairs[:, :, 1, :]
        x = xp.stack((one + other, one - other), axis=2)
        step *= 2
    return xp.reshape(x, shape) * (1.0 / math.sqrt(block))
