"""Formats whose codes are positions in a list of values."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

Array = Any


def look_up(values: np.ndarray, codes: Array) -> Array:
    """values[codes] as float32, on the device and in the array library of `codes`."""
    if isinstance(codes, np.ndarray):
        return values[codes]
    xp = array_namespace(codes)
    table = xp.asarray(values, device=device(codes))
    return xp.reshape(xp.take(table, xp.reshape(xp.astype(codes, xp.int32), (-1,)), axis=0), codes.shape)


@cache
def _sorted(values: tuple[float, ...]) -> tuple[tuple[float, ...], np.ndarray]:
    """(float32 midpoints between neighbours, the codes in ascending order of value)."""
    order = np.argsort(np.array(values), kind="stable")
    ascending = np.array(values, np.float64)[order]
    middles = ((ascending[1:] + ascending[:-1]) / 2).astype(np.float32)
    return tuple(float(m) for m in middles), order.astype(np.uint8)


def nearest(values: tuple[float, ...], x: Array) -> Array:
    """uint8 code of the value nearest to each x; exactly between two, the smaller value. Beyond the ends, the end."""
    xp = array_namespace(x)
    middles, order = _sorted(values)
    # Counting the midpoints that lie below x beats a binary search: 15 vectorised comparisons, no branches.
    rank = xp.zeros(x.shape, dtype=xp.uint8, device=device(x))
    for middle in middles:
        rank += x > middle
    if np.array_equal(order, np.arange(len(values))):
        return rank
    codes = order[rank] if isinstance(x, np.ndarray) else xp.asarray(order, device=device(x))[xp.astype(rank, xp.int64)]
    return codes
