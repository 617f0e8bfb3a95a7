"""Codes of a few bits in bytes, low bits first: what files and `nbytes` mean by packed."""

from __future__ import annotations

import numpy as np


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 or int8 codes [..., n] -> uint8 [..., ceil(n * bits / 8)]. Code i takes the bits i*bits and up of the row, counted from the lowest
    bit of the first byte; codes may lie across bytes. Negative codes are packed in two's complement; what is left of the last byte is 0.
    """
    flat = np.ascontiguousarray(codes).view(np.uint8)
    if bits == 8:
        return flat.copy()
    *lead, n = flat.shape
    padded = np.zeros((*lead, -(-n // 8) * 8), np.uint8)
    padded[..., :n] = flat & ((1 << bits) - 1)
    eights = padded.reshape(*lead, -1, 8).astype(np.uint64)  # eight codes make `bits` whole bytes
    words = np.zeros(eights.shape[:-1], "<u8")
    for i in range(8):
        words |= eights[..., i] << np.uint64(i * bits)
    packed = words[..., None].view(np.uint8)[..., :bits].reshape(*lead, -1)
    return np.ascontiguousarray(packed[..., : -(-n * bits // 8)])


def unpack_bits(packed: np.ndarray, bits: int, n: int, signed: bool = False) -> np.ndarray:
    """The inverse of pack_bits: uint8 [..., bytes] -> [..., n] codes, uint8, or int8 with the sign extended when `signed`."""
    *lead, have = packed.shape
    if have != -(-n * bits // 8):
        raise ValueError(f"{n} codes of {bits} bits take {-(-n * bits // 8)} bytes, not {have}")
    groups = -(-n // 8)
    padded = np.zeros((*lead, groups * bits), np.uint8)
    padded[..., :have] = packed
    words = np.zeros((*lead, groups, 8), np.uint8)
    words[..., :bits] = padded.reshape(*lead, groups, bits)
    whole = words.view("<u8")[..., 0]
    codes = np.empty((*lead, groups, 8), np.uint8)
    for i in range(8):
        codes[..., i] = (whole >> np.uint64(i * bits)) & np.uint64((1 << bits) - 1)
    codes = codes.reshape(*lead, -1)[..., :n]
    if not signed:
        return np.ascontiguousarray(codes)
    shift = 8 - bits
    return np.ascontiguousarray((codes << shift).view(np.int8) >> shift)
