"""Integers of a few bits in words: GPTQ's, AWQ's and AutoRound's packing, and compressed-tensors' dense one.

They are one layout: a stream of bits, value i in bits [i * bits, (i + 1) * bits), the lowest bit first, cut into little-endian words. So the width of
the words (8 to 64 bits) makes no difference, and 3-bit values that lie in two words need no case of their own. AWQ only permutes each eight values.
"""

from __future__ import annotations

import math

import numpy as np

WORD = 32


def words(count: int, bits: int, word: int = WORD) -> int:
    """Words of `word` bits that hold `count` values."""
    return -(-count * bits // word)


def unpack(packed: np.ndarray, bits: int, count: int | None = None) -> np.ndarray:
    """Values of the last axis, uint8: [..., words] of any integer type -> [..., count] (default: all that the words hold)."""
    stream = np.ascontiguousarray(packed).view(np.uint8)
    held = stream.shape[-1] * 8 // bits
    count = held if count is None else count
    if bits == 8:
        return stream[..., :count]
    if bits in (2, 4):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        values = np.empty((*stream.shape, len(shifts)), np.uint8)
        for i, shift in enumerate(shifts):
            np.bitwise_and(stream >> shift, np.uint8((1 << bits) - 1), out=values[..., i])
        return values.reshape(*stream.shape[:-1], held)[..., :count]
    # Eight values lie in `bits` whole bytes.
    runs = -(-stream.shape[-1] // bits)
    wide = np.zeros((*stream.shape[:-1], runs, 8), np.uint8)
    filled = np.zeros((*stream.shape[:-1], runs * bits), np.uint8)
    filled[..., : stream.shape[-1]] = stream
    wide[..., :bits] = filled.reshape(*stream.shape[:-1], runs, bits)
    numbers = wide.view("<u8")
    shifted = numbers >> np.arange(0, 8 * bits, bits, dtype=np.uint64)
    return (shifted & np.uint64((1 << bits) - 1)).astype(np.uint8).reshape(*stream.shape[:-1], runs * 8)[..., :count]


def pack(values: np.ndarray, bits: int, word: int = WORD) -> np.ndarray:
    """The inverse: [..., count] of 0 .. 2**bits - 1 -> [..., words] of signed integers of `word` bits; what is left of the last word is 0."""
    count = values.shape[-1]
    wanted = words(count, bits, word) * (word // 8)
    runs = max(-(-count // 8), -(-wanted // bits))
    padded = np.zeros((*values.shape[:-1], runs * 8), np.uint8)
    padded[..., :count] = values
    if bits == 8:
        stream = padded
    elif bits in (2, 4):
        parts = padded.reshape(*values.shape[:-1], runs * bits, 8 // bits)
        stream = parts[..., 0].copy()
        for i in range(1, 8 // bits):
            stream |= parts[..., i] << np.uint8(i * bits)
    else:
        eights = padded.reshape(*values.shape[:-1], runs, 8)
        numbers = np.zeros((*values.shape[:-1], runs), "<u8")
        for i in range(8):
            numbers |= eights[..., i].astype(np.uint64) << np.uint64(i * bits)
        stream = numbers[..., None].view(np.uint8)[..., :bits].reshape(*values.shape[:-1], runs * bits)
    return np.ascontiguousarray(stream[..., :wanted]).view(f"<i{word // 8}")


def repeated(value: int, bits: int, word: int = WORD) -> int:
    """The unsigned word whose fields are all `value`; only for bits that divide the word."""
    if word % bits:
        raise ValueError(f"{bits} bits do not divide a word of {word}")
    return sum(value << shift for shift in range(0, word, bits))


def regrouped(boundaries: np.ndarray) -> int:
    """The largest length into whose multiples all groups fall that end at `boundaries` (the last one may be cut)."""
    return math.gcd(*(int(b) for b in boundaries[:-1])) if len(boundaries) > 1 else int(boundaries[-1])
