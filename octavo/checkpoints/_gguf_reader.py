"""The structure of a GGUF file, read with every count and length checked against the file's size.

Layout (little endian): "GGUF", u32 version, u64 tensors, u64 metadata pairs; the pairs (string key, u32 type, value); the tensors (string
name, u32 dimensions, u64 each, u32 type, u64 offset); then, aligned, the data. Dimensions stand innermost first.
Source: ggml/docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ._gguf_types import STORAGE
from ._json import shown
from ._mapped import MappedFile

MOST_DIMENSIONS = 4
LONGEST_NAME = 1 << 12
DEEPEST_ARRAY = 4
# Metadata types: id -> (struct format, NumPy type). 8 is a string, 9 an array.
_SCALARS = {0: ("<B", "u1"), 1: ("<b", "i1"), 2: ("<H", "<u2"), 3: ("<h", "<i2"), 4: ("<I", "<u4"), 5: ("<i", "<i4"), 6: ("<f", "<f4"),
            7: ("<?", "?"), 10: ("<Q", "<u8"), 11: ("<q", "<i8"), 12: ("<d", "<f8")}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """A tensor under its own name, and the file that it lies in; shape outermost first, as NumPy has it."""

    name: str
    shape: tuple[int, ...]
    stored: str
    start: int
    nbytes: int
    file: MappedFile


@dataclass(frozen=True)
class GgufFile:
    """`file` is the first where there are several; metadata is that of the first."""

    file: MappedFile
    metadata: dict[str, Any]  # numbers, strings, bools; arrays as lists of strings or NumPy arrays
    tensors: dict[str, GgufTensor]
    parts: tuple[MappedFile, ...] = ()
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # metadata key -> first byte of its type and value, and one past the last


def parse(file: MappedFile) -> GgufFile:
    """Metadata and tensor table. Raises CheckpointError naming the file and the key or tensor at fault."""
    reader = _Reader(file)
    magic = reader.take(4)
    if magic != b"GGUF":
        raise reader.wrong(f"is no GGUF file: it begins with {shown(magic.decode('latin-1'))}", "fetch it again")
    version = reader.number("<I")
    if version and version % (1 << 16) == 0:
        raise reader.wrong("is a big-endian GGUF file", "take the little-endian one")
    if version not in (2, 3):
        raise reader.wrong(f"has GGUF version {version}; 2 and 3 are read", "convert it with a current llama.cpp")
    tensor_count, pair_count = reader.number("<Q"), reader.number("<Q")
    reader.room_for(pair_count, 8 + 4 + 1, "metadata pairs")
    metadata: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(pair_count):
        key = reader.name("a metadata key")
        reader.at = f"metadata {shown(key)}"
        if key in metadata:
            raise reader.wrong("stands twice")
        begin = reader.position
        metadata[key] = reader.value(reader.number("<I"))
        spans[key] = begin, reader.position
    reader.at = ""
    reader.room_for(tensor_count, 8 + 4 + 4 + 8, "tensors")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 8 or alignment > 1 << 20 or alignment & (alignment - 1):
        raise reader.wrong(f"has the alignment {shown(alignment)}, which is no power of two from 8 to 1 MiB")
    claims = [reader.tensor() for _ in range(tensor_count)]
    return GgufFile(file, metadata, _place(reader, claims, -(-reader.position // alignment) * alignment, alignment), spans=spans)


class _Reader:
    def __init__(self, file: MappedFile) -> None:
        self.file, self.position, self.at = file, 0, ""

    def wrong(self, what: str, remedy: str = "the file is truncated or corrupted: fetch it again") -> CheckpointError:
        return CheckpointError(f"{self.at} {what}" if self.at else what, where=str(self.file.path), remedy=remedy)

    def room_for(self, count: int, least: int, what: str) -> None:
        """Before anything is allocated: `count` things of at least `least` bytes must fit into the rest of the file."""
        left = self.file.size - self.position
        if count * least > left:
            raise self.wrong(f"claims {count} {what}, but only {left} bytes follow")

    def take(self, count: int) -> bytes:
        self.room_for(count, 1, "bytes")
        self.position += count
        return self.file.bytes(self.position - count, count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def name(self, what: str) -> str:
        length = self.number("<Q")
        if length > LONGEST_NAME:
            raise self.wrong(f"holds {what} of {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.wrong(f"holds {what} that is not UTF-8") from None

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind][0])
        if kind == _STRING:
            return self.take(self.number("<Q")).decode(errors="replace")
        if kind != _ARRAY:
            raise self.wrong(f"has the unknown type {kind}")
        if depth == DEEPEST_ARRAY:
            raise self.wrong(f"is nested deeper than {DEEPEST_ARRAY} arrays")
        of, count = self.number("<I"), self.number("<Q")
        if of in _SCALARS:
            dtype = np.dtype(_SCALARS[of][1])
            self.room_for(count, dtype.itemsize, "numbers")
            self.position += count * dtype.itemsize
            return self.file.array(dtype, count, self.position - count * dtype.itemsize)
        self.room_for(count, 8 if of == _STRING else 12, "entries")
        if of == _STRING:
            return self.strings(count)
        return [self.value(of, depth + 1) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """Vocabularies are long: one loop without calls."""
        size, position, length_of, data = self.file.size, self.position, struct.Struct("<Q").unpack, self.file.bytes
        found: list[str] = []
        for _ in range(count):
            head = data(position, 8)
            length = length_of(head)[0] if len(head) == 8 else size
            position += 8
            if length > size - position:
                raise self.wrong(f"holds a string of {length} bytes beyond the end of the file")
            found.append(data(position, length).decode(errors="replace"))
            position += length
        self.position = position
        return found

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type, offset) as claimed."""
        name = self.name("a tensor name")
        self.at = f"tensor {shown(name)}"
        dimensions = self.number("<I")
        if dimensions > MOST_DIMENSIONS:
            raise self.wrong(f"has {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]
        kind, offset = self.number("<I"), self.number("<Q")
        self.at = ""
        return name, shape, kind, offset


def _place(reader: _Reader, claims: list[tuple[str, tuple[int, ...], int, int]], begin: int, alignment: int) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in claims:
        reader.at = f"tensor {shown(name)}"
        if name in tensors:
            raise reader.wrong("stands twice")
        if kind not in STORAGE:
            raise reader.wrong(f"has the unknown type {kind}", "it was made by a newer llama.cpp, or is corrupted")
        storage = STORAGE[kind]
        count = math.prod(shape)
        width = shape[-1] if shape else 1
        if count == 0 or width % storage.block:
            raise reader.wrong(f"has the shape {list(shape)}, which type {storage.name} cannot have")
        nbytes = count // storage.block * storage.bytes
        if offset % alignment:
            raise reader.wrong(f"begins at {offset}, which is not aligned to {alignment} bytes")
        if begin + offset + nbytes > reader.file.size:
            raise reader.wrong(f"needs bytes {begin + offset} to {begin + offset + nbytes} of a file of {reader.file.size}")
        tensors[name] = GgufTensor(name, shape, storage.name, begin + offset, nbytes, reader.file)
    reader.at = ""
    previous = None
    for tensor in sorted(tensors.values(), key=lambda t: t.start):
        if previous is not None and tensor.start < previous.start + previous.nbytes:
            raise reader.wrong(f"tensor {shown(tensor.name)} overlaps tensor {shown(previous.name)}")
        previous = tensor
    return tensors
