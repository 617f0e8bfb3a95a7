"""The container of a GGUF file, laid out before its numbers are known: the inverse of _gguf_reader.py. Source: ggml/docs/gguf.md."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._gguf_types import STORAGE
from .base import Layout, Part

ALIGN = 32
_NUMBER = {storage.name: number for number, storage in STORAGE.items()}
_TYPES = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "b1": 7, "u8": 10, "i8": 11, "f8": 12}


def lay_out(name: str, metadata: Mapping[str, Any], parts: Mapping[str, Part]) -> Layout:
    """The file that holds the tensors `parts`, in this order.

    metadata: strings, bools, NumPy scalars, lists of strings, NumPy arrays; an int is a u32, a float a float32; bytes are type and
    value as another file has them. A part of blocks has a shape in
    numbers and holds bytes.
    """
    head = [b"GGUF", struct.pack("<IQQ", 3, len(parts), len(metadata))]
    for key, value in metadata.items():
        head += [_string(key), _value(value)]
    offset, sizes, places = 0, {}, {}
    for part_name, part in parts.items():
        storage = STORAGE[_NUMBER[part.dtype]]
        count = int(np.prod(part.shape, dtype=np.int64))
        sizes[part_name] = count // storage.block * storage.bytes
        head += [_string(part_name), struct.pack("<I", len(part.shape)), struct.pack(f"<{len(part.shape)}Q", *part.shape[::-1]),
                 struct.pack("<IQ", _NUMBER[part.dtype], offset)]
        places[part_name] = (offset, part)
        offset += _aligned(sizes[part_name])
    begun = b"".join(head)
    begun += bytes(_aligned(len(begun)) - len(begun))
    return Layout(name, begun, {n: (len(begun) + at, part) for n, (at, part) in places.items()}, len(begun) + offset)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, _TYPES[value.dtype.str[1:]], len(value)) + np.ascontiguousarray(value).tobytes()
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", _TYPES[value.dtype.str[1:]]) + value.tobytes()
