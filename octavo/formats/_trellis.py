"""Trellis-coded numbers: a code is a state, and states that follow each other share all but their newest bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from array_api_compat import array_namespace, device

from ._number import Array, NumberFormat
from ._table import look_up

STATE_BITS = 12
STATES = 1 << STATE_BITS
MULTIPLIERS = {2: 977, 3: 2791, 4: 3571}  # of the 2,048 odd ones, those with the least error on Gaussian numbers (docs/two-bits.md)
TABLE = np.array((-31, -20, -15, -12, -9, -6, -4, -1, 1, 4, 6, 9, 12, 15, 20, 31), np.int32)
SPREAD = 46.6  # the standard deviation of the values of all states, about: scales are that of the weights divided by it


@cache
def state_values(bits: int) -> np.ndarray:
    """float32 [4096]: the value of each state. Bits 8 to 11 and 0 to 3 of state * multiplier choose two numbers of a table, three of the first and one
    of the second are added: nearly Gaussian, and spread evenly over the states that can follow a state."""
    product = np.arange(STATES, dtype=np.int32) * MULTIPLIERS[bits]
    values: np.ndarray = (3 * TABLE[(product >> 8) & 15] + TABLE[product & 15]).astype(np.float32)
    return values


def digits_of(states: np.ndarray, bits: int, step: int) -> np.ndarray:
    """The bits that came in `step` steps after the oldest ones that a state still holds: step 0 .. 12 / bits - 1, the last is the newest."""
    if bits != 3:
        return (states >> (bits * step)) & ((1 << bits) - 1)
    return ((states >> (2 * step)) & 3) | (((states >> (8 + step)) & 1) << 2)  # two planes: kernels find both at whole bytes


def state_of(digits: np.ndarray, bits: int) -> np.ndarray:
    """uint16 [...]: the states of digits [12 / bits, ...], oldest first."""
    state = np.zeros(digits.shape[1:], np.uint16)
    for step, digit in enumerate(digits.astype(np.uint16)):
        state |= digit << (bits * step) if bits != 3 else ((digit & 3) << (2 * step)) | ((digit >> 2) << (8 + step))
    return state


def _nearest(bits: int) -> Callable[[Array], Array]:
    """An encoder of float32 -> the state whose value is nearest, each number for itself; of equal values the lowest state. What the states of a weight
    in memory are is another matter: see octavo/quantize/rounders/trellis.py."""

    def encode(x: Array) -> Array:
        xp = array_namespace(x)
        values, first = np.unique(state_values(bits), return_index=True)
        middles = xp.asarray((values[1:] + values[:-1]) / 2, device=device(x))
        rank = xp.reshape(xp.searchsorted(middles, xp.reshape(xp.astype(x, xp.float32), (-1,))), x.shape)
        return xp.astype(xp.reshape(xp.take(xp.asarray(first.astype(np.int32), device=device(x)), xp.reshape(rank, (-1,)), axis=0), x.shape), xp.uint16)

    return encode


def trellis(bits: int) -> NumberFormat:
    """The format tcq<bits>."""
    values = state_values(bits)

    def decode(codes: Array) -> Array:
        return look_up(values, codes)

    return NumberFormat(f"tcq{bits}", bits, "trellis", float(values.min()), float(values.max()), float(values[values > 0].min()), _nearest(bits), decode,
                        granularity="channel", scale_format="fp16", code_bits=STATE_BITS)
