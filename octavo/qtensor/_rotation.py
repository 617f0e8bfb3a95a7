"""The rotation of a linear's inputs: Walsh-Hadamard transforms, which spread what is large in a few inputs over many."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace

Array = Any
BLOCK = 64  # beyond it nothing is gained (docs/two-bits.md)
ROWS = 128  # in flight: two buffers of them stay in the caches


def rotation_of(width: int) -> int:
    """The usual block for `width` inputs: the largest power of two that divides it, at most 64; 1 is no rotation."""
    return min(width & -width, BLOCK)


def rotate(x: Array, block: int) -> Array:
    """x [..., width] in blocks of `block` values (a power of two that divides the width) that lie width / block apart, so that every block has values
    of all parts of the input (of all heads): each becomes its Walsh-Hadamard transform over sqrt(block). Orthogonal, symmetric, its own inverse.
    """
    if isinstance(x, np.ndarray):
        return _in_cache(x, block)
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


def _in_cache(x: np.ndarray, block: int) -> np.ndarray:
    """The same, to the bit, some rows at a time: turned, so that runs of values are long, and from one small buffer to another and back."""
    kind = x.dtype if np.issubdtype(x.dtype, np.floating) else np.dtype(np.float64)
    width = x.shape[-1]
    flat, out = x.reshape(-1, width), np.empty((x.size // max(1, width), width), kind)
    for row in range(0, len(flat), ROWS):
        now = np.array(flat[row : row + ROWS].T, kind, order="C")
        other, step = np.empty_like(now), width // block
        while step < width:
            pairs, sums = (buffer.reshape(-1, 2, step * now.shape[1]) for buffer in (now, other))
            np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
            np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
            now, other, step = other, now, 2 * step
        now *= kind.type(1.0 / math.sqrt(block))
        out[row : row + ROWS] = now.T
    return out.reshape(x.shape)
