"""Pieces that GGUF's block decoders share. A block holds consecutive numbers of a row."""

from __future__ import annotations

import numpy as np

Blocks = np.ndarray  # uint8 [n, bytes of a block]
Decoded = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # codes [n, numbers], scales [n, groups], offsets [n, groups] or None


def half(blocks: Blocks, at: int) -> np.ndarray:
    """The float16 at byte `at` of each block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(data: np.ndarray) -> np.ndarray:
    """[n, 16] bytes -> [n, 32]: all low halves, then all high halves."""
    return np.concatenate([data & 15, data >> 4], axis=1)


def planes(data: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Runs of `width` bytes, each holding 8/bits planes of `width` codes, low bits first: [n, bytes] -> [n, codes]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = data.reshape(len(data), -1, 1, width)
    return ((runs >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(data), -1)
