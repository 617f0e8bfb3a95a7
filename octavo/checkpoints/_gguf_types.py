"""GGUF's tensor types: their sizes, and how blocks become codes, scales and offsets.

A block holds consecutive numbers of a row. Each decoder takes blocks [n, bytes] and gives (codes [n, numbers], scales [n, groups],
offsets [n, groups] or None) with value = code * scale + offset, in float32 operations of the same order as ggml's own, so that
dequantized values agree to the bit.
Source: ggml's block definitions (ggml-common.h) and their documentation in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..schemes import TensorSpec
from . import _gguf_iq as iq
from ._gguf_blocks import Blocks, Decoded, half, nibbles, planes


@dataclass(frozen=True)
class Storage:
    """A type of the file: name, numbers in a block, bytes of a block."""

    name: str
    block: int
    bytes: int


STORAGE = {
    kind: Storage(name, block, size)
    for kind, name, block, size in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 36), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292), (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136), (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56), (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18),
    )
}


def _fifth_bits(blocks: Blocks, at: int) -> np.ndarray:
    """The 32 bits at byte `at` as [n, 32] bytes 0 or 16."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def q8_0(blocks: Blocks) -> Decoded:
    return blocks[:, 2:].view(np.int8), half(blocks, 0), None


def q4_0(blocks: Blocks) -> Decoded:
    return nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8), half(blocks, 0), None


def q4_1(blocks: Blocks) -> Decoded:
    return nibbles(blocks[:, 4:]), half(blocks, 0), half(blocks, 2)


def q5_0(blocks: Blocks) -> Decoded:
    return (nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).view(np.int8) - np.int8(16), half(blocks, 0), None


def q5_1(blocks: Blocks) -> Decoded:
    return nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4), half(blocks, 0), half(blocks, 2)


def q2_k(blocks: Blocks) -> Decoded:
    """Groups of 16: 4-bit scales (low halves) and 4-bit minimums (high halves), 2-bit codes, two float16 factors."""
    fine = blocks[:, :16]
    scales = half(blocks, 80) * (fine & 15).astype(np.float32)
    return planes(blocks[:, 16:80], 2, 32), scales, -(half(blocks, 82) * (fine >> 4).astype(np.float32))


def q3_k(blocks: Blocks) -> Decoded:
    """Groups of 16: 6-bit scales less 32, 2-bit codes plus a mask of bits that are less 4 where clear."""
    high = (blocks[:, :32, None].transpose(0, 2, 1) >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    codes = planes(blocks[:, 32:96], 2, 32).view(np.int8) - ((high.reshape(len(blocks), -1) ^ 1) << 2).view(np.int8)
    packed = blocks[:, 96:108]
    low, top = packed[:, :8], packed[:, 8:]
    low = np.concatenate([low & 15, low >> 4], axis=1)
    top = ((top[:, None, :] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3).reshape(len(blocks), 16)
    scales = (low | top << 4).view(np.int8) - np.int8(32)
    return codes, half(blocks, 108) * scales.astype(np.float32), None


def _scales_and_minimums(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes -> eight 6-bit scales and eight 6-bit minimums, float32 [n, 8] (ggml's get_scale_min_k4)."""
    a, b, c = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([a & 63, (c & 15) | ((a >> 2) & 48)], axis=1)
    minimums = np.concatenate([b & 63, (c >> 4) | ((b >> 2) & 48)], axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def q4_k(blocks: Blocks) -> Decoded:
    """Groups of 32: 6-bit scales and minimums, 4-bit codes, two float16 factors."""
    scales, minimums = _scales_and_minimums(blocks[:, 4:16])
    return planes(blocks[:, 16:], 4, 32), half(blocks, 0) * scales, -(half(blocks, 2) * minimums)


def q5_k(blocks: Blocks) -> Decoded:
    """As Q4_K, with a fifth bit: bit g of byte i of the mask belongs to number i of group g."""
    scales, minimums = _scales_and_minimums(blocks[:, 4:16])
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    codes = planes(blocks[:, 48:], 4, 32) | (fifth.reshape(len(blocks), -1) << 4)
    return codes, half(blocks, 0) * scales, -(half(blocks, 2) * minimums)


def q6_k(blocks: Blocks) -> Decoded:
    """Groups of 16: 8-bit scales, codes of 4 low and 2 high bits less 32, one float16 factor."""
    codes = planes(blocks[:, :128], 4, 64) | planes(blocks[:, 128:192], 2, 32) << 4
    scales = half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return codes.view(np.int8) - np.int8(32), scales, None


@dataclass(frozen=True)
class Quantized:
    """What a block type means: its spec, and the decoder. Products of a float16 and a 6-bit scale need float32 to stay exact."""

    spec: TensorSpec
    decode: Callable[[Blocks], Decoded]


def _kind(format: str, group: int, scale_format: str, decode: Callable[[Blocks], Decoded], symmetric: bool = True) -> Quantized:
    return Quantized(TensorSpec(format, "group", group, symmetric=symmetric, scale_format=scale_format), decode)


PLAIN = {"F32": (TensorSpec("fp32"), "<f4"), "F16": (TensorSpec("fp16"), "<f2"), "BF16": (TensorSpec("bf16"), "<u2"), "F64": (TensorSpec("fp32"), "<f8")}
WHOLE = ("I8", "I16", "I32", "I64")  # listed, but no weights
QUANTIZED = {
    "Q8_0": _kind("int8", 32, "fp16", q8_0),
    "Q4_0": _kind("int4", 32, "fp16", q4_0),
    "Q4_1": _kind("int4", 32, "fp16", q4_1, symmetric=False),
    "Q5_0": _kind("int5", 32, "fp16", q5_0),
    "Q5_1": _kind("int5", 32, "fp16", q5_1, symmetric=False),
    "Q2_K": _kind("int2", 16, "fp32", q2_k, symmetric=False),
    "Q3_K": _kind("int3", 16, "fp32", q3_k),
    "Q4_K": _kind("int4", 32, "fp32", q4_k, symmetric=False),
    "Q5_K": _kind("int5", 32, "fp32", q5_k, symmetric=False),
    "Q6_K": _kind("int6", 16, "fp32", q6_k),
    "Q8_1": _kind("int8", 32, "fp16", iq.q8_1),
    "Q8_K": _kind("int8", 256, "fp32", iq.q8_k),
    "Q1_0": _kind("int2", 128, "fp16", iq.q1_0),
    "TQ1_0": _kind("int2", 256, "fp16", iq.tq1_0),
    "TQ2_0": _kind("int3", 256, "fp16", iq.tq2_0),
    "IQ1_S": _kind("int8", 32, "fp32", iq.iq1_s),
    "IQ1_M": _kind("int8", 16, "fp32", iq.iq1_m),
    "IQ2_XXS": _kind("int8", 32, "fp32", iq.iq2_xxs),
    "IQ2_XS": _kind("int8", 16, "fp32", iq.iq2_xs),
    "IQ2_S": _kind("int8", 16, "fp32", iq.iq2_s),
    "IQ3_XXS": _kind("int8", 32, "fp32", iq.iq3_xxs),
    "IQ3_S": _kind("int8", 32, "fp32", iq.iq3_s),
    "IQ4_NL": _kind("iq4nl", 32, "fp16", iq.iq4_nl),
    "IQ4_XS": _kind("iq4nl", 32, "fp32", iq.iq4_xs),
    "MXFP4": _kind("mxfp4", 32, "e8m0", iq.mxfp4),
    "NVFP4": _kind("nvfp4", 16, "fp8e4m3", iq.nvfp4),
}


def spec_of(stored: str) -> TensorSpec | None:
    """The spec of a type, None for those that cannot be read."""
    return PLAIN[stored][0] if stored in PLAIN else QUANTIZED[stored].spec if stored in QUANTIZED else None
