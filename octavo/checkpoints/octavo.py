"""octavo: what Octavo quantized, ready to be mapped.

What it is: a folder of safetensors files whose weights are panels as the kernels read them (U8 blobs at multiples of 64 bytes), with
config.json holding a `quantization_config` (quant_method "octavo", the plan, the meaning of each blob, the arrays that say how a weight permutes or
scales its inputs), tokenizer files, and manifest.json saying what it was made of.
When to choose it: the cache of models quantized as they load, and for handing such a model on.
Limits: only Octavo computes with the blobs; the layout's version must be this program's.
Source: csrc/ops.h (struct Packed), octavo/layouts.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import layouts
from ..errors import CheckpointError, OctavoError
from ..layouts import Packed, PackedMeta
from ..qtensor import QTensor
from ..schemes import CacheSpec, Plan, TensorSpec
from ._folder import load_tokenizer, quant_method, read_tokenizer_settings
from ._json import read_object, shown
from ._mapped import MappedFile, row_range
from ._octavo_writer import CACHE_SCALES, INPUT_SCALE, MANIFEST, METHOD, VERSION, OctavoWriter
from ._safetensors_header import Entry
from .base import TensorInfo
from .safetensors import SPECS, SafetensorsCheckpoint, map_tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

COLUMNS = {"order": "I32", "factors": "F32"}  # of a weight's inputs: the arrays there may be, and their types
LARGEST_INPUT_SCALE = float(np.finfo(np.float32).max)
MOST_LAYERS = 10_000
AGAIN = "remove the folder; it will be made again from the source"

__all__ = ["CODEC", "OctavoCheckpoint", "OctavoWriter"]


class OctavoCheckpoint(SafetensorsCheckpoint):
    """A folder that OctavoWriter wrote. `plan` and `manifest` are as they were given to it."""

    codec = "octavo"

    def __init__(self, path: Path, config: dict[str, Any], tensors: dict[str, TensorInfo], places: dict[str, tuple[MappedFile, int]],
                 metas: dict[str, PackedMeta], columns: dict[str, dict[str, Any]]) -> None:
        super().__init__(path, config, tensors, places)
        self._metas, self._columns = metas, columns
        self.plan: dict[str, Any] = config["quantization_config"].get("plan") or {}
        self.manifest = read_object(path / MANIFEST, required=False)
        self.cache_plan = _cache_of(self.plan, config)
        self.cache = self.cache_plan if isinstance(self.cache_plan, TensorSpec) else None
        self._cache_scales = _read_cache_scales(config["quantization_config"].get(CACHE_SCALES), path)

    @property
    def source_config(self) -> dict[str, Any]:
        """The config of the model that this was made of."""
        return {key: value for key, value in self.config.items() if key != "quantization_config"}

    def tokenizer(self) -> Tokenizer:
        """Built from tokenizer.json. Raises CheckpointError."""
        return load_tokenizer(self.path)

    def tokenizer_settings(self) -> dict[str, Any]:
        """See Checkpoint.tokenizer_files; without the tokenizer."""
        return read_tokenizer_settings(self.path)

    def packed(self, name: str) -> Packed | None:
        """The weight as kernels read it: a read-only view of the mapped file, 64-byte aligned. None for plain arrays."""
        info, meta = self.info(name), self._metas.get(name)
        if meta is None:
            return None
        file, start = self._places[name]
        return Packed(file.array("u1", info.nbytes, start), meta, **{part: of for part, of in self._columns.get(name, {}).items() if part != INPUT_SCALE})

    def input_scales(self) -> dict[str, np.ndarray]:
        """Weight -> the stored scale of its inputs, float32 [], of those that have static ones."""
        return {name: np.array(parts[INPUT_SCALE], np.float32) for name, parts in self._columns.items() if INPUT_SCALE in parts}

    def cache_scales(self) -> dict[str, np.ndarray]:
        """"model.layers.0.self_attn.k" (and ".v") -> the stored scale of the key-value cache, or one for each head, float32."""
        return self._cache_scales

    def read(self, name: str, rows: slice | None = None) -> QTensor:
        """See Checkpoint.read. Packed weights are unpacked."""
        packed = self.packed(name)
        if packed is None:
            return super().read(name, rows)
        first, last = row_range(rows, packed.meta.n)
        begin = first - first % packed.meta.unit
        tensor = layouts.unpack(packed, None if rows is None else slice(begin, last))
        if begin != first:
            tensor = _from_row(tensor, first - begin)
        return self.checked(tensor, self.info(name))


def _from_row(q: QTensor, first: int) -> QTensor:
    """Rows from `first` (below one panel) on. Scales that cross rows are refused by `unpack`'s callers before, or are of the tensor."""
    if q.spec.granularity == "block":
        raise CheckpointError("rows of a weight with 2-D blocks are read from multiples of the block only")
    whole = q.spec.granularity == "tensor"
    scales, zeros, offsets = (a if a is None or whole else a[first:] for a in (q.scales, q.zeros, q.offsets))
    return replace(q, codes=q.codes[first:], shape=(q.shape[0] - first, *q.shape[1:]), scales=scales, zeros=zeros, offsets=offsets)


def _read_meta(name: str, claim: Any, entry: Entry, file: Path) -> PackedMeta:
    """The meaning of a blob, checked against the blob: kernels trust it."""
    def wrong(what: str) -> CheckpointError:
        return CheckpointError(f"tensor {shown(name)} {what}", where=str(file), remedy=AGAIN)

    try:
        meta = PackedMeta.from_json(claim)
        sizes = (meta.n, meta.k)
        if meta.layout != layouts.LAYOUT:
            raise wrong(f"is packed as {shown(meta.layout)}, this version packs {layouts.LAYOUT!r}")
        if not all(type(size) is int and 0 < size < 1 << 31 for size in sizes):
            raise wrong(f"claims to be {shown(sizes)}")
        if meta != layouts.describe(meta.spec, *sizes) or meta.nbytes != entry.nbytes or entry.dtype != "U8" or entry.start % layouts.ALIGN:
            raise wrong("does not have the layout that the config describes")
    except CheckpointError:
        raise
    except (OctavoError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise wrong(f"has no proper description ({type(error).__name__})") from None
    return meta


def _read_columns(claims: Any, metas: dict[str, PackedMeta], entries: Mapping[str, Entry],
                  homes: Mapping[str, MappedFile]) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """({weight: its order, factors, rotation, scale of inputs}, names of the tensors that hold them), checked, since kernels trust them."""
    found: dict[str, dict[str, Any]] = {}
    used: set[str] = set()
    for name, parts in (claims if isinstance(claims, dict) else {}).items():
        for part, tensor in (parts if isinstance(parts, dict) else {"?": "?"}).items():
            if part == "rotation" and name in metas and type(tensor) is int and tensor > 1 and not tensor & (tensor - 1) and metas[name].k % tensor == 0:
                found.setdefault(name, {})[part] = tensor
                continue
            if part == INPUT_SCALE and name in metas and isinstance(tensor, (int, float)) and 0 < tensor <= LARGEST_INPUT_SCALE:
                found.setdefault(name, {})[part] = float(tensor)
                continue
            known = COLUMNS.get(part) if name in metas else None
            entry = entries.get(tensor) if isinstance(tensor, str) else None
            where = str(homes[name].path) if name in homes else ""
            if known is None or entry is None or tensor in metas or (entry.dtype, entry.shape) != (known, (metas[name].k,)) or entry.start % 4:
                raise CheckpointError(f"tensor {shown(name)} has no proper {shown(part)}", where=where, remedy=AGAIN)
            array = homes[tensor].array("<i4" if known == "I32" else "<f4", metas[name].k, entry.start)
            if not (np.array_equal(np.sort(array), np.arange(len(array))) if part == "order" else np.isfinite(array).all()):
                raise CheckpointError(f"tensor {shown(tensor)} holds no {part} of inputs", where=where, remedy=AGAIN)
            found.setdefault(name, {})[part] = array
            used.add(tensor)
    return found, used


def _cache_of(plan: dict[str, Any], config: Mapping[str, Any]) -> TensorSpec | CacheSpec | None:
    """What the plan says of the key-value cache; None: 16 bits, or a plan that cannot be read, which loading will say."""
    layers = config.get("num_hidden_layers")
    try:
        spec = Plan.from_json(plan).cache(layers if type(layers) is int and 0 < layers < MOST_LAYERS else 1)
    except OctavoError:
        return None
    return spec if isinstance(spec, CacheSpec) or spec.quantized else None


def _read_cache_scales(claims: Any, path: Path) -> dict[str, np.ndarray]:
    """Static scales of the key-value cache, checked: finite and above 0."""
    found = {}
    for name, values in (claims if isinstance(claims, dict) else {}).items():
        good = isinstance(values, list) and values and all(isinstance(value, (int, float)) and 0 < value <= LARGEST_INPUT_SCALE for value in values)
        if not good:
            raise CheckpointError(f"the scales of the cache {shown(name)} are {shown(values)}, not numbers above 0", where=str(path / "config.json"),
                                  remedy="quantize the model again")
        found[name] = np.array(values, np.float32)
    return found


class OctavoCodec:
    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> OctavoCheckpoint:
        config = read_object(path / "config.json")
        described = config.get("quantization_config")
        claims = described.get("tensors") if isinstance(described, dict) else None
        if not isinstance(described, dict) or not isinstance(claims, dict) or described.get("version") != VERSION:
            raise CheckpointError(f"is no octavo checkpoint of version {VERSION}", where=str(path / "config.json"), remedy="quantize the model again")
        entries, homes = map_tensors(path)
        for file in {id(file): file for file in homes.values()}.values():
            file.in_large_pages()
        for name in claims:
            if name not in entries:
                raise CheckpointError(f"tensor {shown(name)} is missing", where=str(path), remedy="remove the folder; it will be made again")
        metas = {name: _read_meta(name, claim, entries[name], homes[name].path) for name, claim in claims.items()}
        columns, used = _read_columns(described.get("columns"), metas, entries, homes)
        tensors = {name: _info(name, entry, homes[name].path, metas.get(name)) for name, entry in entries.items() if name not in used}
        return OctavoCheckpoint(path, config, tensors, {name: (homes[name], e.start) for name, e in entries.items()}, metas, columns)


def _info(name: str, entry: Entry, file: Path, meta: PackedMeta | None) -> TensorInfo:
    if meta is not None:
        return TensorInfo(name, (meta.n, meta.k), meta.spec, entry.nbytes, file, meta.layout)
    return TensorInfo(name, entry.shape, SPECS[entry.dtype][0] if entry.dtype in SPECS else None, entry.nbytes, file, entry.dtype)


CODEC = OctavoCodec()
