"""Two codes of 4 bits to a byte."""

from __future__ import annotations

import numpy as np


def low_first(packed: np.ndarray, columns: int) -> np.ndarray:
    """Bytes [rows, ceil(columns / 2)] as codes [rows, columns], the low half of a byte first."""
    codes = np.empty((*packed.shape, 2), np.uint8)
    codes[..., 0], codes[..., 1] = packed & 15, packed >> 4
    return codes.reshape(packed.shape[0], -1)[:, :columns]


def packed_low_first(codes: np.ndarray) -> np.ndarray:
    """The inverse, for an even number of columns."""
    packed: np.ndarray = codes[:, 0::2] | codes[:, 1::2] << 4
    return packed
