"""GGUF's types with codebooks (IQ1, IQ2, IQ3), with a table (IQ4), with three values (TQ), with one bit (Q1_0), and its microscaling types.

A number of an IQ type is a scale times a small whole number with a sign, so the codes are those numbers as int8; IQ1 moves them by an eighth, so its codes
count eighths. Decoders are as in _gguf_types.py: blocks [n, bytes] -> (codes, scales, offsets), with values that agree with ggml's to the bit.
Source: ggml's block definitions and dequantizers (ggml-common.h, ggml-quants.c); the microscaling types: OCP MX specification 1.0.
"""

from __future__ import annotations

import numpy as np

from .. import formats
from ._gguf_blocks import Blocks, Decoded, half, nibbles, planes
from ._gguf_codebooks import codebook

_BITS = np.arange(8, dtype=np.uint8)
# The eighth sign of seven stored ones makes the number of minus signs even.
_SIGNS = np.array([i | (i.bit_count() & 1) << 7 for i in range(128)], np.uint8)


def _signed(vectors: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Vectors of a codebook [n, m, 8 or 4] with the signs of bytes [n, bytes], a bit for each number in order: [n, numbers]."""
    negative = (signs[..., None] >> _BITS & 1).reshape(len(signs), -1).view(np.int8)
    codes = vectors.reshape(len(vectors), -1)
    return codes * (1 - 2 * negative)


def _fours(data: np.ndarray) -> np.ndarray:
    """[n, bytes] -> [n, 2 * bytes]: of each byte the low half, then the high half."""
    return np.stack([data & 15, data >> 4], axis=2).reshape(len(data), -1)


def _words(blocks: Blocks, start: int, end: int, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, start:end]).view(dtype)


def _iq2_scales(blocks: Blocks, fine: np.ndarray) -> np.ndarray:
    return half(blocks, 0) * (np.float32(0.5) + fine.astype(np.float32)) * np.float32(0.25)


def iq2_xxs(blocks: Blocks) -> Decoded:
    """Groups of 32: four bytes of codes, and a word of four times seven signs and four bits of scale."""
    words = _words(blocks, 2, 66, "<u4").reshape(len(blocks), 8, 2)
    codes = np.ascontiguousarray(words[..., 0]).view(np.uint8).reshape(len(blocks), -1)
    signs = _SIGNS[words[..., 1, None] >> np.array([0, 7, 14, 21], np.uint32) & 127].reshape(len(blocks), -1)
    return _signed(codebook("iq2_xxs")[codes], signs), _iq2_scales(blocks, words[..., 1] >> 28), None


def iq2_xs(blocks: Blocks) -> Decoded:
    """Groups of 16: words of nine bits of code and seven of signs; four bits of scale."""
    words = _words(blocks, 2, 66, "<u2")
    return _signed(codebook("iq2_xs")[words & 511], _SIGNS[words >> 9]), _iq2_scales(blocks, _fours(blocks[:, 66:74])), None


def iq2_s(blocks: Blocks) -> Decoded:
    """As IQ2_XS with ten bits of code and all eight signs, in places of their own."""
    high = (blocks[:, 66:74, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(len(blocks), -1)
    return _signed(codebook("iq2_s")[blocks[:, 2:34] | high.astype(np.uint16) << 8], blocks[:, 34:66]), _iq2_scales(blocks, _fours(blocks[:, 74:82])), None


def iq3_xxs(blocks: Blocks) -> Decoded:
    """Groups of 32: eight bytes of codes for four numbers each; signs and scales as IQ2_XXS."""
    words = _words(blocks, 66, 98, "<u4")
    signs = _SIGNS[words[..., None] >> np.array([0, 7, 14, 21], np.uint32) & 127].reshape(len(blocks), -1)
    scales = half(blocks, 0) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    return _signed(codebook("iq3_xxs")[blocks[:, 2:66]], signs), scales, None


def iq3_s(blocks: Blocks) -> Decoded:
    """Groups of 32: nine bits of code for four numbers each, a sign for each number, four bits of scale."""
    high = (blocks[:, 66:74, None] >> _BITS & 1).reshape(len(blocks), -1)
    scales = half(blocks, 0) * (1 + 2 * _fours(blocks[:, 106:110])).astype(np.float32)
    return _signed(codebook("iq3_s")[blocks[:, 2:66] | high.astype(np.uint16) << 8], blocks[:, 74:106]), scales, None


def iq1_s(blocks: Blocks) -> Decoded:
    """Groups of 32: eleven bits of code for eight numbers of -1, 0, 1; all moved by an eighth up or down; three bits of scale."""
    words = _words(blocks, 34, 50, "<u2")
    high = (words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(len(blocks), -1)
    vectors = codebook("iq1")[blocks[:, 2:34] | high << 8].reshape(len(blocks), 8, 32)
    delta = np.where(words & 0x8000, np.int8(-1), np.int8(1))[..., None]
    scales = half(blocks, 0) * (2 * (words >> 12 & 7) + 1).astype(np.float32)
    return (8 * vectors + delta).reshape(len(blocks), -1), scales / 8, None


def iq1_m(blocks: Blocks) -> Decoded:
    """Groups of 16: as IQ1_S, moved eight by eight; the float16 scale lies in the top bits of four words of three-bit scales."""
    words = _words(blocks, 48, 56, "<u2")
    whole = np.bitwise_or.reduce((words & 0xF000) >> np.array([12, 8, 4, 0], np.uint16), axis=1)[:, None]
    fine = (words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(len(blocks), -1)
    high = _fours(blocks[:, 32:48])
    vectors = codebook("iq1")[blocks[:, :32] | (high & 7).astype(np.uint16) << 8]
    delta = np.where(high & 8, np.int8(-1), np.int8(1))[..., None]
    return (8 * vectors + delta).reshape(len(blocks), -1), whole.view("<f2").astype(np.float32) * (2 * fine + 1).astype(np.float32) / 8, None


def iq4_nl(blocks: Blocks) -> Decoded:
    """Groups of 32: places in a table of 16 values."""
    return nibbles(blocks[:, 2:]), half(blocks, 0), None


def iq4_xs(blocks: Blocks) -> Decoded:
    """As IQ4_NL with 6-bit scales less 32."""
    low, high = _fours(blocks[:, 4:8]), _words(blocks, 2, 4, "<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (low | high.astype(np.uint8) << 4).view(np.int8) - np.int8(32)
    codes = np.stack([blocks[:, 8:].reshape(-1, 8, 16) & 15, blocks[:, 8:].reshape(-1, 8, 16) >> 4], axis=2)
    return codes.reshape(len(blocks), -1), half(blocks, 0) * scales.astype(np.float32), None


def _threes(data: np.ndarray, digits: int) -> np.ndarray:
    """Bytes [n, m] of `digits` base-3 digits, the first the highest, as a fraction of 256: [n, digits * m], digit by digit."""
    shifted = data[:, None, :] * np.array([3**i for i in range(digits)], np.uint8)[:, None]  # overflow takes the digits before away
    return (shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(data), -1)


def tq1_0(blocks: Blocks) -> Decoded:
    """-1, 0, 1: five to a byte, four in the last ones."""
    codes = np.concatenate([_threes(blocks[:, :32], 5), _threes(blocks[:, 32:48], 5), _threes(blocks[:, 48:52], 4)], axis=1)
    return codes.view(np.int8) - np.int8(1), half(blocks, 52), None


def tq2_0(blocks: Blocks) -> Decoded:
    """-1, 0, 1 by two bits each, and 2, which no writer uses: hence three bits here."""
    return planes(blocks[:, :64], 2, 32).view(np.int8) - np.int8(1), half(blocks, 64), None


def q1_0(blocks: Blocks) -> Decoded:
    """The scale or its negative, by one bit."""
    return (2 * (blocks[:, 2:, None] >> _BITS & 1)).reshape(len(blocks), -1).view(np.int8) - np.int8(1), half(blocks, 0), None


def q8_1(blocks: Blocks) -> Decoded:
    """As Q8_0, beside the sum of the numbers that products with offsets want."""
    return blocks[:, 4:].view(np.int8), half(blocks, 0), None


def q8_k(blocks: Blocks) -> Decoded:
    """Groups of 256 with a float32 scale, and sums of 16."""
    return blocks[:, 4:260].view(np.int8), _words(blocks, 0, 4, "<f4"), None


def mxfp4(blocks: Blocks) -> Decoded:
    """Groups of 32 with a power of two."""
    return nibbles(blocks[:, 1:]), formats.get("e8m0").decode(blocks[:, :1]), None


def nvfp4(blocks: Blocks) -> Decoded:
    """Groups of 16, each in eight bytes of its own; E4M3 scales without a sign, whose NaN stands for 0, and for 480 where the sign's bit is set (ggml)."""
    stored = blocks[:, :4]
    plain = formats.get("fp8e4m3").decode(stored & 127)
    scales = np.where(stored & 127 == 127, np.where(stored == 127, np.float32(0), np.float32(480)), plain)
    quarters = blocks[:, 4:].reshape(-1, 4, 8)
    return np.concatenate([quarters & 15, quarters >> 4], axis=2).reshape(len(blocks), -1), scales, None
