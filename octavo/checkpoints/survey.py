"""What lies in a folder of safetensors files, sound or not: for those who examine broken checkpoints.

`survey` reads what a codec would refuse: it takes every tensor whose own claims hold, and notes what does not fit as complaints instead of raising.
Nothing here gives weights a meaning; arrays are what the files store.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import formats
from ..errors import CheckpointError
from ._folder import read_tokenizer_settings
from ._json import parse_object, read_object
from ._mapped import MappedFile
from ._quantized import DTYPES
from ._safetensors_header import LARGEST_HEADER, Entry, read_entry
from .safetensors import INDEX

__all__ = ["Complaint", "Survey", "known_parts", "read_object", "read_tokenizer_settings", "survey"]

PIECE = 1 << 20  # elements looked at together
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
CODED = {"BF16": "bf16", "F8_E4M3": "fp8e4m3", "F8_E5M2": "fp8e5m2", "F8_E8M0": "e8m0"}


@dataclass(frozen=True)
class Complaint:
    """`code` is one of: unreadable_file truncated_file bad_entry overlap uncovered_bytes duplicate_tensor missing_shard unlisted_shard
    unlisted_tensor index_without_tensor."""

    code: str
    file: str
    tensor: str
    what: str


@dataclass
class Survey:
    """A folder as it is. `tensors` holds every tensor that can be read, by name; of a name that stands in two files, the first."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    complaints: list[Complaint] = field(default_factory=list)
    tensors: dict[str, Entry] = field(default_factory=dict)
    homes: dict[str, MappedFile] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def complain(self, code: str, file: Path, what: str, tensor: str = "") -> None:
        self.complaints.append(Complaint(code, file.name, tensor, what))

    def stored(self, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """`count` elements of the flattened tensor from `first` on, as stored: small floats and bfloat16 as unsigned integers, F4 two to a byte."""
        entry = self.tensors[name]
        dtype = np.dtype(DTYPES[entry.dtype])
        total = entry.nbytes // dtype.itemsize
        count = total - first if count is None else min(count, total - first)
        array = self.homes[name].array(dtype, count, entry.start + first * dtype.itemsize)
        return array if array.flags.aligned else array.copy()

    def floats(self, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """The same as float32, for floats of any width (`is_float`)."""
        dtype = self.tensors[name].dtype
        array = self.stored(name, first, count)
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(np.float32) if dtype in FLOATS else np.asarray(formats.get(CODED[dtype]).decode(array), np.float32)

    def is_float(self, name: str) -> bool:
        return self.tensors[name].dtype in (FLOATS | CODED)

    def pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """(index of the first row, whole rows [n, width] as float32), in order, and lets go of the file's pages behind it."""
        entry = self.tensors[name]
        width = entry.shape[-1] if entry.shape else 1
        rows = int(np.prod(entry.shape[:-1], dtype=np.int64)) if entry.shape else 1
        step = max(1, PIECE // max(1, width))
        for row in range(0, rows if width else 0, step):
            taken = min(step, rows - row)
            yield row, self.floats(name, row * width, taken * width).reshape(taken, width)
        self.release(name)

    def bytes(self, name: str) -> Iterator[np.ndarray]:
        """The tensor's bytes, piece by piece."""
        entry, home = self.tensors[name], self.homes[name]
        for at in range(0, entry.nbytes, 4 * PIECE):
            yield home.array(np.uint8, min(4 * PIECE, entry.nbytes - at), entry.start + at)
        self.release(name)

    def release(self, name: str) -> None:
        self.homes[name].release(self.tensors[name].start, self.tensors[name].nbytes)


def survey(path: Path) -> Survey:
    """Everything that can be told about a folder. Raises CheckpointError only where config.json is not to be read."""
    found = Survey(path, read_object(path / "config.json", required=False))
    index = _index(found)
    present = sorted(file for file in path.glob("*.safetensors") if file.is_file())
    whole = path / "model.safetensors"
    listed = [whole] if whole.is_file() else sorted({path / name for name in index.values()}) if index else present
    for file in listed:
        if not file.is_file():
            found.complain("missing_shard", file, f"{sum(name == file.name for name in index.values())} tensors of the index lie in it")
            continue
        _take(found, file, {} if whole.is_file() else index)
    for file in present:
        if file not in listed and file.name.startswith("model"):
            instead = f"{INDEX} does not name it" if index and not whole.is_file() else "model.safetensors is read instead"
            found.complain("unlisted_shard", file, f"{file.stat().st_size} bytes; {instead}")
    if not whole.is_file():
        for name, home in index.items():
            if name not in found.tensors and (path / home).is_file() and not any(c.tensor == name for c in found.complaints):
                found.complain("index_without_tensor", path / home, f"{INDEX} says that it lies here", name)
    return found


def _index(found: Survey) -> dict[str, str]:
    try:
        mapping = read_object(found.path / INDEX, required=False).get("weight_map", {})
    except CheckpointError as error:
        found.complain("unreadable_file", found.path / INDEX, error.what)
        return {}
    safe = isinstance(mapping, dict) and all(isinstance(file, str) and file.endswith(".safetensors") and Path(file).name == file for file in mapping.values())
    if not safe:
        found.complain("unreadable_file", found.path / INDEX, "its weight_map does not map tensors to files of this folder")
    return mapping if safe else {}


def _take(found: Survey, path: Path, index: Mapping[str, str]) -> None:
    """The tensors of one file."""
    try:
        file = MappedFile(path)
        length = struct.unpack("<Q", file.bytes(0, 8))[0] if file.size >= 8 else -1
        if not 0 <= length <= min(file.size - 8, LARGEST_HEADER):
            found.complain("truncated_file" if 0 <= length <= LARGEST_HEADER else "unreadable_file", path,
                           f"the header claims {length} bytes, the file has {file.size}")
            return
        header = parse_object(file.bytes(8, length).rstrip(b" "), "header", deepest=4)
    except CheckpointError as error:
        found.complain("unreadable_file", path, error.what)
        return
    found.files.append(path.name)
    entries: dict[str, Entry] = {}
    begin = 8 + length
    for name, claim in header.items():
        if name == "__metadata__":
            continue
        try:
            entries[name] = read_entry(path, name, claim, begin, file.size - begin)
        except CheckpointError as error:
            offsets = claim.get("data_offsets") if isinstance(claim, dict) else None
            beyond = isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets) and file.size - begin < offsets[1] < 1 << 50
            found.complain("truncated_file" if beyond else "bad_entry", path, error.what, name)
    _check_cover(found, path, entries, begin, file.size, any(c.file == path.name for c in found.complaints))
    for name, entry in entries.items():
        if index and index.get(name) != path.name:
            found.complain("unlisted_tensor", path, f"{INDEX} " + (f"says that it lies in {index[name]}" if name in index else "does not name it"), name)
            continue
        if name in found.tensors:
            found.complain("duplicate_tensor", path, f"it also lies in {found.homes[name].path.name}", name)
            continue
        if entry.dtype not in DTYPES:
            found.complain("bad_entry", path, f"it is of type {entry.dtype}, which nothing here reads", name)
            continue
        found.tensors[name], found.homes[name] = entry, file


def _check_cover(found: Survey, path: Path, entries: Mapping[str, Entry], begin: int, size: int, faulty: bool) -> None:
    """Tensors that overlap, and bytes that belong to none, which the safetensors library refuses."""
    end, previous, gaps = begin, "", 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start < end and entry.nbytes:
            found.complain("overlap", path, f"it begins at byte {entry.start}, tensor {previous} ends at {end}", name)
        gaps += max(0, entry.start - end)
        end, previous = max(end, entry.start + entry.nbytes), name
    if (gaps or end < size) and not faulty:
        found.complain("uncovered_bytes", path, f"{gaps + max(0, size - end)} of {size} bytes belong to no tensor")


def known_parts(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Weight -> {part: stored tensor}, by the names that quantizers give: "….q_proj" -> {"qweight": "….q_proj.qweight", ...}.

    Parts of bitsandbytes keep their dots ("weight.absmax"); fused experts of MXFP4 have the parts "_blocks" and "_scales".
    """
    found: dict[str, dict[str, str]] = {}
    for name in names:
        head, dot, tail = name.partition(".weight.")
        if dot:
            found.setdefault(head, {})["weight." + tail] = name
            continue
        head, _, tail = name.rpartition(".")
        for ending in ("_blocks", "_scales"):
            if tail.endswith(ending):
                head, tail = name.removesuffix(ending), ending
        found.setdefault(head, {})[tail] = name
    return found
