"""safetensors: a Hugging Face folder with unquantized weights.

What it is: config.json, model.safetensors (or shards with model.safetensors.index.json), tokenizer.json and the small files beside them.
When to choose it: the format in which models are published.
Limits: no pickles (.bin, .pt). F64 is narrowed to float32 when read; integer buffers are listed but cannot be read.
Source: the safetensors README, "Format"; Hugging Face's sharded index.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._folder import SMALL_FILES, read_tokenizer_files
from ._json import read_object, shown
from ._mapped import MappedCheckpoint, MappedFile, row_range
from ._safetensors_header import Entry, parse_header
from ._shapes import check_shapes
from .base import TensorInfo, Writer, WriterOptions

INDEX = "model.safetensors.index.json"
# Type in the file -> what it means here, and the NumPy type of its codes. Scaleless 8-bit types stand for their plain values.
SPECS: dict[str, tuple[TensorSpec, Any]] = {
    "F32": (TensorSpec("fp32"), "<f4"),
    "F64": (TensorSpec("fp32"), "<f8"),
    "F16": (TensorSpec("fp16"), "<f2"),
    "BF16": (TensorSpec("bf16"), "<u2"),
    "I8": (TensorSpec("int8", "tensor"), "i1"),
    "U8": (TensorSpec("int8", "tensor", symmetric=False), "u1"),
    "F8_E4M3": (TensorSpec("fp8e4m3", "tensor"), "u1"),
    "F8_E5M2": (TensorSpec("fp8e5m2", "tensor"), "u1"),
}


class SafetensorsCheckpoint(MappedCheckpoint):
    """A folder of safetensors files, mapped."""

    codec = "safetensors"

    def read(self, name: str, rows: slice | None = None) -> QTensor:
        """The tensor (or some of its rows), its codes a view of the file; see Checkpoint.read."""
        info = self.info(name)
        if info.spec is None:
            raise CheckpointError(f"tensor {shown(name)} of type {info.stored} is no weight", where=str(info.file))
        file, start = self._places[name]
        dtype = np.dtype(SPECS[info.stored][1])
        width = math.prod(info.shape[1:])
        first, last = row_range(rows, info.shape[0]) if info.shape else (0, 1)
        shape = (last - first, *info.shape[1:]) if info.shape else ()
        codes = file.array(dtype, (last - first) * width, start + first * width * dtype.itemsize).reshape(shape)
        if info.stored == "F64":
            with np.errstate(over="ignore"):  # to infinity, which is refused below
                codes = codes.astype(np.float32)
        elif not codes.flags.aligned:
            codes = codes.copy()
        one = np.ones((1, 1), np.float32) if info.spec.quantized else None
        zeros = np.zeros((1, 1), np.float32) if not info.spec.symmetric else None
        return self.checked(QTensor(codes, one, info.spec, shape, zeros=zeros), info)

    def as_stored(self, name: str) -> np.ndarray:
        """The bytes of a stored tensor, whatever its type: a view of the file. For tensors that are moved, not understood."""
        info = self.info(name)
        file, start = self._places[name]
        return file.array("u1", info.nbytes, start)

    def tokenizer_files(self) -> dict[str, Any]:
        return read_tokenizer_files(self.path)

    def content_files(self) -> Iterable[Path]:
        small = [self.path / name for name in SMALL_FILES]
        return [*super().content_files(), *(p for p in small if p.is_file()), *sorted(self.path.glob("additional_chat_templates/*.jinja"))]


def map_tensors(path: Path) -> tuple[dict[str, Entry], dict[str, MappedFile]]:
    """Every tensor in a folder's safetensors files: (entries, the file of each). Raises CheckpointError."""
    files = [path / "model.safetensors"]
    index: dict[str, str] | None = None
    if not files[0].is_file():
        index = _read_index(path / INDEX) if (path / INDEX).is_file() else None
        files = sorted({path / name for name in index.values()}) if index is not None else sorted(path.glob("*.safetensors"))
    entries: dict[str, Entry] = {}
    homes: dict[str, MappedFile] = {}
    for file in files:
        if index is not None and not file.is_file():
            raise CheckpointError("is missing: the index lists it", where=str(file), remedy="fetch the missing shard")
        mapped = MappedFile(file)
        for name, entry in parse_header(mapped).items():
            if index is not None and index.get(name) != file.name:
                continue  # the index decides; a shard may hold more
            if name in entries:
                raise CheckpointError(f"tensor {shown(name)} also stands in {homes[name].path.name}", where=str(file))
            entries[name], homes[name] = entry, mapped
    for name, home in (index or {}).items():
        if name not in entries:
            raise CheckpointError(f"tensor {shown(name)} is missing: {INDEX} says it is here", where=str(path / home), remedy="fetch the model again")
    return entries, homes


def _read_index(path: Path) -> dict[str, str]:
    mapping = read_object(path).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError("has no weight_map", where=str(path), remedy="fetch it again")
    for name, file in mapping.items():
        # A shard is a plain file name beside the index: nothing may lead out of the folder.
        if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file or "\\" in file or "\0" in file or file.startswith("."):
            raise CheckpointError(f"tensor {shown(name)} is said to lie in {shown(file)}, which is no shard of this folder", where=str(path),
                                  remedy="the index is corrupted or hostile: fetch it again")
    return mapping


class SafetensorsCodec:
    def writer(self, options: WriterOptions) -> Writer:
        from ._plain_writer import PlainWriter

        return PlainWriter(options)

    def claims(self, path: Path) -> bool:
        return (path.is_dir() and any(path.glob("*.safetensors"))) or (path / INDEX).is_file()

    def open(self, path: Path) -> SafetensorsCheckpoint:
        config = read_object(path / "config.json")
        entries, homes = map_tensors(path)
        tensors = {
            name: TensorInfo(name, e.shape, SPECS[e.dtype][0] if e.dtype in SPECS else None, e.nbytes, homes[name].path, e.dtype)
            for name, e in entries.items()
        }
        check_shapes(config, tensors, path)
        return SafetensorsCheckpoint(path, config, tensors, {name: (homes[name], e.start) for name, e in entries.items()})


CODEC = SafetensorsCodec()
