"""Folders of safetensors files whose weights are stored as several tensors each: what all codecs of quantized checkpoints share.

A codec of this kind turns config.json and the names in the files into `Layer`s, one per quantized weight, and `open_quantized` does the rest: what no
layer claims stays a tensor of its own. Everything a layer says is checked by the codec before anything is read (`Raw.array` checks type and shape).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import formats
from ..errors import CheckpointError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._folder import find_quantization
from ._json import read_object, shown
from ._mapped import MappedFile, row_range
from ._safetensors_header import Entry
from ._shapes import check_shapes
from .base import TensorInfo
from .safetensors import SPECS, SafetensorsCheckpoint, map_tensors

# Type in the file -> NumPy type of its codes; floats that NumPy lacks are unsigned integers.
DTYPES = {"BOOL": "u1", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1", "F4": "u1", "I16": "<i2", "U16": "<u2", "F16": "<f2",
          "BF16": "<u2", "I32": "<i4", "U32": "<u4", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U64": "<u8"}

ALL = slice(None)


@dataclass(frozen=True)
class Raw:
    """The tensors of a folder as its files hold them. Mapped: an array is a view."""

    path: Path
    entries: Mapping[str, Entry]
    homes: Mapping[str, MappedFile]

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def error(self, name: str, what: str, remedy: str = "") -> CheckpointError:
        """A CheckpointError that names the tensor and its file."""
        home = self.homes.get(name)
        return CheckpointError(f"tensor {shown(name)} {what}", where=str(home.path if home else self.path),
                               remedy=remedy or "weights and quantization_config do not fit each other: fetch the model again")

    def entry(self, name: str, dtypes: Sequence[str], shape: Sequence[int | None] | None = None) -> Entry:
        """The tensor's entry. Raises CheckpointError where it is missing, of none of these types, or of another shape (None: any length)."""
        entry = self.entries.get(name)
        if entry is None:
            raise self.error(name, "is missing", "the checkpoint is incomplete: fetch it again")
        if entry.dtype not in dtypes:
            raise self.error(name, f"is of type {entry.dtype}, expected {' or '.join(dtypes)}")
        if shape is not None and (len(shape) != len(entry.shape) or any(s is not None and s != e for s, e in zip(shape, entry.shape, strict=True))):
            expected = ", ".join("any" if s is None else str(s) for s in shape)
            raise self.error(name, f"has shape {list(entry.shape)}, expected [{expected}]")
        return entry

    def array(self, name: str, dtypes: Sequence[str], shape: Sequence[int | None] | None = None) -> np.ndarray:
        """The tensor, checked as `entry` does; bfloat16 and 8-bit floats as unsigned integers. A read-only view of the file wherever it is aligned."""
        entry = self.entry(name, dtypes, shape)
        dtype = np.dtype(DTYPES[entry.dtype])
        array = self.homes[name].array(dtype, entry.nbytes // dtype.itemsize, entry.start)
        if not array.flags.aligned:
            array = array.copy()
        return array.reshape(entry.shape if entry.dtype != "F4" else (*entry.shape[:-1], -1))

    def exponents(self, name: str, shape: Sequence[int | None] | None = None, rows: slice = ALL) -> np.ndarray:
        """Scales that are powers of two, stored as exponents in bytes (E8M0), as float32; checked as `entry` does. 255 is NaN."""
        array = self.array(name, ("U8", "F8_E8M0"), shape)
        return decoded_exponents(array if rows is ALL else array[rows])

    def floats(self, name: str, shape: Sequence[int | None] | None = None, rows: slice = ALL) -> np.ndarray:
        """Scales and the like as float32: a tensor of F32, F16 or BF16, checked as `entry` does; all of it, or some rows (not of a scalar)."""
        array = self.array(name, ("F32", "F16", "BF16"), shape)
        array = array if rows is ALL else array[rows]
        if self.entries[name].dtype == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32)


@dataclass(frozen=True)
class Layer:
    """One quantized weight.

    name, shape   Hugging Face's name of the weight ("....weight"), [out, in]
    spec          of what is stored: `read` gives QTensors of it
    stored        the format's own name, as users know it, e.g. "gptq 4 bits, groups of 128"
    parts         every stored tensor that belongs to it, scales of its inputs included; no other layer may claim them
    read          rows [first, last) of the weight; called with whole cells where scales cross rows (blocks, one scale per tensor: all rows)
    activation    what the files say its inputs are quantized to
    inputs        the stored tensor (one of `parts`) with the scale of its inputs, where activations are static
    reciprocal    that tensor holds what inputs are multiplied by, not what they are divided by
    stack         (position, number): the parts hold this many weights along their first dimension, of which this is one (experts); a layer for
                  each may claim them
    """

    name: str
    shape: tuple[int, int]
    spec: TensorSpec
    stored: str
    parts: tuple[str, ...]
    read: Callable[[int, int], QTensor]
    activation: TensorSpec | None = None
    inputs: str | None = None
    reciprocal: bool = False
    stack: tuple[int, int] = (0, 1)


class QuantizedCheckpoint(SafetensorsCheckpoint):
    """A folder whose quantized weights are `layers`; made by `open_quantized`."""

    def __init__(self, raw: Raw, config: dict[str, Any], tensors: dict[str, TensorInfo], layers: Mapping[str, Layer], codec: str,
                 cache: TensorSpec | None, notes: Sequence[str]) -> None:
        super().__init__(raw.path, config, tensors, {name: (raw.homes[name], entry.start) for name, entry in raw.entries.items()})
        self.codec, self.cache, self.notes = codec, cache, notes
        self._raw, self._layers = raw, layers

    def read(self, name: str, rows: slice | None = None) -> QTensor:
        """See Checkpoint.read. Where scales cross rows, rows are cut out of the cells that hold them."""
        layer = self._layers.get(name)
        if layer is None:
            return super().read(name, rows)
        first, last = row_range(rows, layer.shape[0])
        if layer.spec.granularity in ("tensor", "block") and (first, last) != (0, layer.shape[0]):
            cell = layer.spec.size if layer.spec.granularity == "block" else 0
            if not cell or first % cell or (last % cell and last != layer.shape[0]):
                raise ValueError("rows of a weight whose scales cross rows are read in whole cells")
        return self.checked(layer.read(first, last), self.info(name))

    def release(self, name: str) -> None:
        """See Checkpoint.release: all parts of the weight."""
        layer = self._layers.get(name)
        position, number = layer.stack if layer is not None else (0, 1)
        for part in self.tensors[name].parts or (name,):
            size = self._raw.entries[part].nbytes // number
            self._raw.homes[part].release(self._raw.entries[part].start + position * size, size)

    def stored_names(self) -> Iterable[str]:
        """Every tensor in the files, parts of weights and scales of the cache included."""
        return self._raw.entries

    def input_scales(self) -> dict[str, np.ndarray]:
        """Weight -> the stored scale of its inputs, as the file shapes it; float32, or float64 where the file holds its reciprocal."""
        found = {name: (self._raw.floats(layer.inputs), layer.reciprocal) for name, layer in self._layers.items() if layer.inputs is not None}
        return {name: 1 / scale.astype(np.float64) if reciprocal else scale for name, (scale, reciprocal) in found.items()}

    def cache_scales(self) -> dict[str, np.ndarray]:
        """"model.layers.0.self_attn.k" (and ".v") -> the stored scale of the cache, float32, as the file shapes it."""
        found = {name: _CACHE_SCALE.match(name) for name in self._raw.entries}
        return {f"{match[1]}.{match[2]}": self._raw.floats(name) for name, match in found.items() if match is not None}


# compressed-tensors keeps the scales of the cache at the attention, ModelOpt at the projections.
_CACHE_SCALE = re.compile(r"(.*\.self_attn)\.(?:[kv]_proj\.|attn\.)?([kv])_scale$")
Describe = Callable[[dict[str, Any], dict[str, Any], Raw], Iterable[Layer]]


def open_quantized(path: Path, codec: str, describe: Describe, *, used: Callable[[str], bool] = lambda name: False,
                   cache: TensorSpec | None = None, notes: Sequence[str] = ()) -> QuantizedCheckpoint:
    """Opens a folder. `describe(config, quantization_config, raw)` gives its layers; `used(name)` says of a stored tensor that belongs to no weight
    (scales of the cache) that it is known and needs no use.

    Raises CheckpointError where two layers claim one tensor, or a layer claims a tensor that is not there.
    """
    config = read_object(path / "config.json")
    entries, homes = map_tensors(path)
    if not entries:
        raise CheckpointError("holds no safetensors files with weights", where=str(path), remedy="fetch the model again")
    raw = Raw(path, entries, homes)
    layers: dict[str, Layer] = {}
    claimed: dict[str, Layer] = {}
    for layer in describe(config, quantization_config(path), raw):
        for part in layer.parts:
            if part not in raw:
                raise raw.error(part, f"is missing: it belongs to {shown(layer.name)}", "the checkpoint is incomplete: fetch it again")
            owner = claimed.setdefault(part, layer)
            if owner.name != layer.name and not (owner.stack[1] == layer.stack[1] > 1 and owner.parts == layer.parts):
                raise raw.error(part, f"belongs to {shown(owner.name)} and to {shown(layer.name)}")
        if layer.name in layers or (layer.name in raw and layer.name not in layer.parts):
            raise raw.error(layer.name, "is there twice: as it is and quantized")
        layers[layer.name] = layer
    _refuse_unscaled(raw, [name for name in entries if name not in claimed and not used(name)])
    tensors = {name: _info(layer, raw) for name, layer in layers.items()}
    tensors |= {name: TensorInfo(name, e.shape, SPECS[e.dtype][0] if e.dtype in SPECS else None, e.nbytes, homes[name].path, e.dtype)
                for name, e in entries.items() if name not in claimed and not used(name)}
    check_shapes(config, tensors, path)
    return QuantizedCheckpoint(raw, config, tensors, layers, codec, cache, notes)


def decoded_exponents(codes: np.ndarray) -> np.ndarray:
    """The powers of two (E8M0) that exponents in bytes stand for, as float32; 255 is NaN."""
    return np.asarray(formats.get("e8m0").decode(codes), np.float32)


# Types that a matrix has only when it was quantized: without a layer that knows its scales, its codes would be taken for its values.
_CODES = ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4")


def _refuse_unscaled(raw: Raw, names: Iterable[str]) -> None:
    for name in names:
        if raw.entries[name].dtype in _CODES and len(raw.entries[name].shape) > 1:
            raise raw.error(name, f"of type {raw.entries[name].dtype} is quantized, but no scales that quantization_config speaks of belong to it",
                            "the checkpoint is incomplete or of a variant that is not read: fetch it again, or take the unquantized model")


def quantization_config(path: Path) -> dict[str, Any]:
    """The quantization_config of a folder. Raises CheckpointError where there is none."""
    found = find_quantization(path)
    if found is None:
        raise CheckpointError("has no quantization_config", where=str(path / "config.json"), remedy="fetch the model again")
    return found


def _info(layer: Layer, raw: Raw) -> TensorInfo:
    nbytes = sum(raw.entries[part].nbytes for part in layer.parts) // layer.stack[1]
    return TensorInfo(layer.name, layer.shape, layer.spec, nbytes, raw.homes[layer.parts[0]].path, layer.stored, layer.activation, layer.parts)
