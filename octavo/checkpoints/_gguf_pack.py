"""A QTensor's own codes and scales as GGUF blocks, without rounding anything: the inverse of the decoders.

Types of 32 numbers hold any integers of as few bits, whatever their group was, as long as it is whole blocks: its scale stands in each. K types
need scales that are small integers times one float16 per 256; where they came from such a file, those factors are found again.
Source: ggml's block definitions (ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import formats
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._gguf_types import QUANTIZED, STORAGE
from .base import InexactError

BLOCK = {storage.name: (storage.block, storage.bytes) for storage in STORAGE.values()}
_INTEGERS = {"Q8_0": 8, "Q4_0": 4, "Q5_0": 5, "Q4_1": 4, "Q5_1": 5, "TQ1_0": 2, "TQ2_0": 2}  # bits of the codes
MOST = {"Q2_K": 15, "Q3_K": 31, "Q4_K": 63, "Q5_K": 63, "Q6_K": 127}  # of the small integers


def why_not(kind: str, spec: TensorSpec, width: int) -> str | None:
    """None when blocks of this type can hold such numbers, as far as the spec tells."""
    block = BLOCK[kind][0]
    if width % block:
        return f"rows of {width} numbers are not whole blocks of {block}"
    if kind in _INTEGERS:
        number = formats.get(spec.format)
        if number.kind != "int" or number.bits > _INTEGERS[kind]:
            return f"{kind} holds integers of {_INTEGERS[kind]} bits, not {spec.format}"
        if spec.granularity not in ("group", "channel", "tensor") or (spec.granularity == "group" and spec.size % block):
            return f"{kind} has a scale for every {block} numbers of a row, not per {spec.granularity} of {spec.size}"
        return None
    wanted = QUANTIZED[kind].spec
    if (spec.format, spec.granularity, spec.size, spec.symmetric) != (wanted.format, wanted.granularity, wanted.size, wanted.symmetric):
        return f"{kind} holds {wanted.format} in groups of {wanted.size}, not {spec.format} per {spec.granularity} of {spec.size}"
    return None


def pack(kind: str, tensor: QTensor) -> np.ndarray:
    """uint8 [rows, row bytes]. Raises InexactError for numbers that do not fit."""
    if tensor.order is not None or tensor.factors is not None:
        raise InexactError("its inputs are permuted or scaled, which GGUF has no place for")
    rows, width = (1, *tensor.shape)[-2:]
    block, size = BLOCK[kind]
    with np.errstate(all="ignore"):
        blocks = _PACKERS[kind](tensor)
    return blocks.reshape(rows, width // block * size)


def half(values: np.ndarray, what: str = "scales") -> np.ndarray:
    """[n] float32 -> uint8 [n, 2], the same numbers in float16."""
    stored = np.asarray(values, np.float32).astype("<f2")
    if not np.array_equal(stored.astype(np.float32), np.asarray(values, np.float32)):
        raise InexactError(f"its {what} are not all float16")
    return np.ascontiguousarray(stored).view(np.uint8).reshape(-1, 2)


def _spread(tensor: QTensor, values: np.ndarray, block: int) -> np.ndarray:
    """Scales, zeros or offsets, one for each block: [blocks]."""
    rows, width = (1, *tensor.shape)[-2:]
    every = tensor.spec.size if tensor.spec.granularity == "group" else width
    spread = np.repeat(np.asarray(values, np.float32), every // block, axis=1)[:, : width // block]
    return np.ascontiguousarray(np.broadcast_to(spread, (rows, width // block))).reshape(-1)


def _scales(tensor: QTensor, block: int) -> np.ndarray:
    assert tensor.scales is not None
    return _spread(tensor, np.asarray(tensor.scales), block)


def _whole(tensor: QTensor, block: int, low: int, high: int) -> np.ndarray:
    """Codes less zero points, int16 [blocks, block], all within low .. high."""
    codes = np.asarray(tensor.codes).reshape(-1, block).astype(np.int16)
    if tensor.offsets is not None:
        raise InexactError("it has minimums, which this type has no place for")
    if tensor.zeros is not None:
        zeros = _spread(tensor, np.asarray(tensor.zeros), block)
        if (zeros != np.round(zeros)).any() or (np.abs(zeros) > 255).any():
            raise InexactError("its zero points are not whole")
        codes -= zeros.astype(np.int16)[:, None]
    if codes.size and (codes.min() < low or codes.max() > high):
        raise InexactError(f"its codes less their zero points are not all from {low} to {high}")
    return codes


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """[n, 32] -> [n, 16]: the first sixteen in the low halves."""
    codes = codes.astype(np.uint8) & 15
    return codes[:, :16] | codes[:, 16:] << 4


def _fifth(codes: np.ndarray) -> np.ndarray:
    return np.packbits(codes.astype(np.uint8) >> 4, axis=1, bitorder="little")


def _q8_0(tensor: QTensor) -> np.ndarray:
    return np.concatenate([half(_scales(tensor, 32)), _whole(tensor, 32, -128, 127).astype(np.int8).view(np.uint8)], axis=1)


def _q4_0(tensor: QTensor) -> np.ndarray:
    return np.concatenate([half(_scales(tensor, 32)), _nibbles(_whole(tensor, 32, -8, 7) + 8)], axis=1)


def _q5_0(tensor: QTensor) -> np.ndarray:
    codes = _whole(tensor, 32, -16, 15) + 16
    return np.concatenate([half(_scales(tensor, 32)), _fifth(codes), _nibbles(codes)], axis=1)


def _with_minimum(tensor: QTensor) -> tuple[np.ndarray, np.ndarray]:
    """(scale and minimum as bytes [n, 4], unsigned codes [n, 32])."""
    codes, scales = np.asarray(tensor.codes).reshape(-1, 32).astype(np.int16), _scales(tensor, 32)
    if tensor.offsets is not None:
        minimums = _spread(tensor, np.asarray(tensor.offsets), 32)
    elif tensor.zeros is not None:
        zeros = _spread(tensor, np.asarray(tensor.zeros), 32)
        if (zeros != np.round(zeros)).any():
            raise InexactError("its zero points are not whole")
        minimums = -zeros * scales
    else:
        low = int(formats.get(tensor.spec.format).low)
        codes, minimums = codes - low, low * scales
    return np.concatenate([half(scales), half(minimums, "minimums (zero points times scales)")], axis=1), codes


def _q4_1(tensor: QTensor) -> np.ndarray:
    factors, codes = _with_minimum(tensor)
    return np.concatenate([factors, _nibbles(codes)], axis=1)


def _q5_1(tensor: QTensor) -> np.ndarray:
    factors, codes = _with_minimum(tensor)
    return np.concatenate([factors, _fifth(codes), _nibbles(codes)], axis=1)


def _iq4_nl(tensor: QTensor) -> np.ndarray:
    return np.concatenate([half(_scales(tensor, 32)), _nibbles(np.asarray(tensor.codes).reshape(-1, 32))], axis=1)


def _mxfp4(tensor: QTensor) -> np.ndarray:
    power = formats.get("e8m0")
    scales = _scales(tensor, 32)
    codes = power.encode(scales)
    if not np.array_equal(power.decode(codes), scales):
        raise InexactError("its scales are not all powers of two")
    return np.concatenate([codes[:, None], _nibbles(np.asarray(tensor.codes).reshape(-1, 32))], axis=1)


def _planes(codes: np.ndarray) -> np.ndarray:
    """[n, 256] two-bit codes -> [n, 64]: runs of 32 bytes with four planes of 32."""
    runs = (codes.astype(np.uint8) & 3).reshape(len(codes), 2, 4, 32)
    return (runs << np.array([0, 2, 4, 6], np.uint8)[:, None]).sum(axis=2, dtype=np.uint8).reshape(len(codes), 64)


def _tq2_0(tensor: QTensor) -> np.ndarray:
    return np.concatenate([_planes(_whole(tensor, 256, -1, 1) + 1), half(_scales(tensor, 256))], axis=1)


def _tq1_0(tensor: QTensor) -> np.ndarray:
    digits, parts = (_whole(tensor, 256, -1, 1) + 1).astype(np.uint16), []
    for first, width, held in ((0, 32, 5), (160, 16, 5), (240, 4, 4)):
        run = digits[:, first : first + held * width].reshape(len(digits), held, width)
        number = (run * np.array([81, 27, 9, 3, 1], np.uint16)[:held, None]).sum(axis=1, dtype=np.uint16)
        parts.append(((number * 256 + 242) // 243).astype(np.uint8))
    return np.concatenate([*parts, half(_scales(tensor, 256))], axis=1)


def factored(values: np.ndarray, most: int, least: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """values [n, groups] float32 = a float16 [n] times integers least .. most [n, groups]: both, found again. Raises InexactError."""
    values = np.asarray(values, np.float32)
    top = values[np.arange(len(values)), np.abs(values).argmax(axis=1)]
    factor, whole, open_ = np.zeros(len(values), np.float16), np.zeros(values.shape, np.int16), top != 0
    for k in (*range(1, most + 1), *range(-1, least - 1, -1)):
        rows = np.flatnonzero(open_)
        if not rows.size:
            break
        tried = (top[rows] / np.float32(k)).astype(np.float16)
        exact = (tried.astype(np.float32) * np.float32(k) == top[rows]) & (tried != 0)
        rows, tried = rows[exact], tried[exact]
        found = np.round(values[rows] / tried.astype(np.float32)[:, None])
        fits = ((found * tried.astype(np.float32)[:, None] == values[rows]) & (found >= least) & (found <= most)).all(axis=1)
        factor[rows[fits]], whole[rows[fits]], open_[rows[fits]] = tried[fits], found[fits].astype(np.int16), False
    if open_.any():
        raise InexactError("its scales are not small integers times a float16 for every 256 numbers")
    return factor, whole


def _two_levels(tensor: QTensor, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(bytes of both factors [n, 4], integers of the scales, of the minimums, codes [n, 256])."""
    groups = 256 // tensor.spec.size
    assert tensor.scales is not None
    if tensor.offsets is None:
        raise InexactError("it has zero points, where this type has minimums")
    d, scales = factored(np.asarray(tensor.scales).reshape(-1, groups), MOST[kind])
    dmin, minimums = factored(-np.asarray(tensor.offsets).reshape(-1, groups), MOST[kind])
    factors = np.stack([d, dmin], axis=1).astype("<f2").view(np.uint8)
    return factors, scales.astype(np.uint8), minimums.astype(np.uint8), np.asarray(tensor.codes).reshape(-1, 256)


def _q2_k(tensor: QTensor) -> np.ndarray:
    factors, scales, minimums, codes = _two_levels(tensor, "Q2_K")
    return np.concatenate([scales | minimums << 4, _planes(codes), factors], axis=1)


def _six_bits(scales: np.ndarray, minimums: np.ndarray) -> np.ndarray:
    low, high = scales[:, :4] | (scales[:, 4:] >> 4) << 6, minimums[:, :4] | (minimums[:, 4:] >> 4) << 6
    return np.concatenate([low, high, (scales[:, 4:] & 15) | (minimums[:, 4:] & 15) << 4], axis=1)


def _runs_of_two(codes: np.ndarray, width: int) -> np.ndarray:
    """[n, c] -> [n, c / 2]: runs of `width` bytes, low halves first."""
    runs = (codes.astype(np.uint8) & 15).reshape(len(codes), -1, 2, width)
    return (runs[:, :, 0] | runs[:, :, 1] << 4).reshape(len(codes), -1)


def _q4_k(tensor: QTensor) -> np.ndarray:
    factors, scales, minimums, codes = _two_levels(tensor, "Q4_K")
    return np.concatenate([factors, _six_bits(scales, minimums), _runs_of_two(codes, 32)], axis=1)


def _q5_k(tensor: QTensor) -> np.ndarray:
    factors, scales, minimums, codes = _two_levels(tensor, "Q5_K")
    fifth = ((codes >> 4).astype(np.uint8).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]).sum(axis=1, dtype=np.uint8)
    return np.concatenate([factors, _six_bits(scales, minimums), fifth, _runs_of_two(codes, 32)], axis=1)


def _q3_k(tensor: QTensor) -> np.ndarray:
    assert tensor.scales is not None
    d, scales = factored(np.asarray(tensor.scales).reshape(-1, 16), 31, -32)
    codes = (np.asarray(tensor.codes).reshape(-1, 256) + np.int8(4)).astype(np.uint8)
    mask = ((codes >> 2).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]).sum(axis=1, dtype=np.uint8)
    stored = (scales + 32).astype(np.uint8)
    top = ((stored >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]).sum(axis=1, dtype=np.uint8)
    low = (stored[:, :8] & 15) | (stored[:, 8:] & 15) << 4
    return np.concatenate([mask, _planes(codes), low, top, d.astype("<f2")[:, None].view(np.uint8)], axis=1)


def _q6_k(tensor: QTensor) -> np.ndarray:
    assert tensor.scales is not None
    d, scales = factored(np.asarray(tensor.scales).reshape(-1, 16), 127, -128)
    codes = (np.asarray(tensor.codes).reshape(-1, 256) + np.int8(32)).astype(np.uint8)
    return np.concatenate([_runs_of_two(codes, 64), _planes(codes >> 4), scales.astype(np.int8).view(np.uint8), d.astype("<f2")[:, None].view(np.uint8)],
                          axis=1)


_PACKERS: dict[str, Callable[[QTensor], np.ndarray]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "IQ4_NL": _iq4_nl, "MXFP4": _mxfp4, "TQ1_0": _tq1_0, "TQ2_0": _tq2_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}
