"""The header of a safetensors file, read with every claim checked against the file's size.

Layout: u64 length N (little endian), N bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the data that the
offsets count from. Source: the safetensors README, "Format".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from ..errors import CheckpointError
from ._json import parse_object, shown
from ._mapped import MappedFile

LARGEST_HEADER = 32 << 20  # a quarter of a million tensors; the reference reader stops at 100 MB
MOST_DIMENSIONS = 8
# Bits of one element, by the file's name of the type.
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
        "U64": 64}


@dataclass(frozen=True)
class Entry:
    """One tensor: its type, shape, first byte in the file and number of bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def parse_header(file: MappedFile) -> dict[str, Entry]:
    """Every tensor of the file. Raises CheckpointError naming the file and, where one is at fault, the tensor."""
    where = str(file.path)
    if file.size < 8:
        raise CheckpointError(f"is too short for a safetensors file: {file.size} bytes", where=where, remedy="fetch it again")
    (length,) = struct.unpack("<Q", file.header(0, 8))
    if length > min(file.size - 8, LARGEST_HEADER):
        raise CheckpointError(f"the header claims {length} bytes, the file has {file.size}", where=where,
                              remedy="it is truncated or no safetensors file: fetch it again")
    header = parse_object(file.header(8, length).rstrip(b" "), f"{where}: header", deepest=4)
    begin, size = 8 + length, file.size - 8 - length
    entries = {name: read_entry(file.path, name, claim, begin, size) for name, claim in header.items() if name != "__metadata__"}
    end, previous = begin, ""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start < end and entry.nbytes:
            raise CheckpointError(f"tensor {shown(name)} overlaps tensor {shown(previous)}", where=where, remedy="the file is corrupted: fetch it again")
        end, previous = max(end, entry.start + entry.nbytes), name
    return entries


def read_entry(path: Path, name: str, claim: object, begin: int, size: int) -> Entry:
    """One claim of a header whose data are `size` bytes from byte `begin` of the file on. Raises CheckpointError."""

    def wrong(what: str) -> CheckpointError:
        return CheckpointError(f"tensor {shown(name)} {what}", where=str(path), remedy="the file is truncated or corrupted: fetch it again")

    if not isinstance(claim, dict):
        raise wrong("has no description")
    dtype, shape, offsets = claim.get("dtype"), claim.get("shape"), claim.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise wrong(f"has the unknown type {shown(dtype)}")
    if not _whole_numbers(shape) or len(shape) > MOST_DIMENSIONS:
        raise wrong(f"has no proper shape: {shown(shape)}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise wrong(f"has no proper data_offsets: {shown(offsets)}")
    first, last = offsets
    if not first <= last <= size:
        raise wrong(f"lies at bytes {shown(first)[1:-1]} to {shown(last)[1:-1]} of {size} bytes of data")
    bits = BITS[dtype]
    for length in shape:
        bits *= length
        if bits > 8 * size:  # before the product grows beyond all bounds; zero sizes come back to 0 bytes
            break
    if bits != 8 * (last - first) and not (0 in shape and first == last):
        raise wrong(f"of type {dtype} and shape {shown(shape)[1:-1]} does not fit into its {last - first} bytes")
    return Entry(dtype, tuple(shape), begin + first, last - first)


def _whole_numbers(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)


def read_metadata(file: MappedFile) -> dict[str, str]:
    """The free text by key that a header carries beside its tensors (`parse_header` has checked the rest). Raises CheckpointError."""
    where = str(file.path)
    (length,) = struct.unpack("<Q", file.header(0, 8))
    found = parse_object(file.header(8, min(length, LARGEST_HEADER)).rstrip(b" "), f"{where}: header", deepest=4).get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError("has metadata that is no text by key", where=where, remedy="the file is corrupted: fetch it again")
    return found
