"""Double quantization (QLoRA, arXiv 2305.14314, section 3): the scales of a weight's blocks, in one byte each.

Their mean is taken off; what is left is divided by the largest magnitude of each 256 and rounded to the nearest of 256 values between -1 and 1 that lie
close together near zero (dynamic data type, arXiv 1511.04561): scale = table[byte] * largest + mean.
"""

from __future__ import annotations

from functools import cache

import numpy as np

RUN = 256       # scales that share a largest magnitude
EXPONENTS = 7   # of ten


@cache
def dynamic_table() -> np.ndarray:
    """float32 [256], ascending: zero, one, and for each power of ten from 10^-6 to 1 the middles of equal parts of 0.1 to 1, each twice as many, of either
    sign."""
    values = [0.0, 1.0]
    for exponent in range(EXPONENTS):
        parts = np.float32(10.0 ** (exponent - EXPONENTS + 1)) * _middles(2**exponent)
        values += [*parts.tolist(), *(-parts).tolist()]
    return np.sort(np.array(values, np.float32))


def _middles(count: int) -> np.ndarray:
    """Of `count` equal parts of 0.1 to 1. Each half is counted from its end with a float32 step, as the table that files hold was made."""
    low, high, places = np.float64(np.float32(0.1)), np.float64(1), np.arange(count + 1, dtype=np.float64)
    step = np.float64((np.float32(1) - np.float32(0.1)) / np.float32(count))
    ends = np.where(places < (count + 1) // 2, low + step * places, high - step * (count - places)).astype(np.float32)
    middles: np.ndarray = (ends[:-1] + ends[1:]) / np.float32(2)
    return middles


def double_quantized(scales: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """(bytes uint8 [n], largest magnitude of each run float32 [runs], mean) of scales float32 [n]."""
    mean = np.float32(scales.mean(dtype=np.float64))
    rest = scales - mean
    starts = np.arange(0, len(rest), RUN)
    largest = np.maximum.reduceat(np.abs(rest), starts)
    divisor = np.repeat(np.where(largest == 0, np.float32(1), largest), RUN)[: len(rest)]
    table = dynamic_table()
    codes = np.searchsorted((table[:-1] + table[1:]) / 2, rest / divisor)
    return codes.astype(np.uint8), largest, mean
