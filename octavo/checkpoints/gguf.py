"""GGUF: llama.cpp's file, with tensors, config and tokenizer in one.

What it is: a mapped file of tensors in ggml's types. Read are F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K, each to the
bit what ggml's own dequantization gives; architectures llama (Mistral too), qwen2, qwen3, smollm3 and gemma3 (text) under Hugging
Face's names and conventions.
When to choose it: where a model is published in it; it is small, and one file.
Limits: no importance-matrix (IQ) and ternary types, no files in several parts, little endian only.
Source: ggml/docs/gguf.md.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .. import formats
from ..errors import CheckpointError
from ..qtensor import QTensor
from ._gguf_config import Metadata, config_of
from ._gguf_names import ARCHITECTURES, heads_interleaved, hugging_face_name, norm_plus_one, row_order
from ._gguf_reader import GgufFile, GgufTensor, parse
from ._gguf_tokenizer import end_tokens, tokenizer_config, tokenizer_of
from ._gguf_types import PLAIN, QUANTIZED, STORAGE, WHOLE, spec_of
from ._json import shown
from ._mapped import MappedCheckpoint, MappedFile, row_range
from ._shapes import check_shapes
from .base import TensorInfo

CHUNK = 1 << 19  # numbers decoded at a time
BYTES_OF_BLOCK = {storage.name: storage.bytes for storage in STORAGE.values()}


class GgufCheckpoint(MappedCheckpoint):
    """A .gguf file, mapped."""

    codec = "gguf"

    def __init__(self, source: GgufFile) -> None:
        path = source.file.path
        config, tensors = config_of(source), _rename(source)
        if tensors:  # a file may hold nothing but a vocabulary
            check_shapes(config, {name: info for name, (info, _) in tensors.items()}, path)
        super().__init__(path, config, {name: info for name, (info, _) in tensors.items()},
                         {name: (source.file, tensor.start) for name, (_, tensor) in tensors.items()})
        self._source, self._architecture = source, Metadata(source).architecture

    def read(self, name: str, rows: slice | None = None) -> QTensor:
        """The tensor in Hugging Face's order and convention; see Checkpoint.read."""
        info = self.info(name)
        file, start = self._places[name]
        first, last = row_range(rows, info.shape[0]) if info.shape else (0, 1)
        shape = (last - first, *info.shape[1:]) if info.shape else ()
        order = self._order(name, info)
        picked = slice(first, last) if order is None else order[first:last]
        if info.spec is None:
            raise CheckpointError(f"tensor {shown(name)} of type {info.stored} is no weight", where=str(info.file))
        if info.stored in PLAIN:
            spec, dtype = PLAIN[info.stored]
            stored = file.array(dtype, math.prod(info.shape), start).reshape(info.shape)
            codes = stored[picked] if info.shape else stored
            if info.stored == "F64":
                with np.errstate(over="ignore"):  # to infinity, which is refused below
                    codes = codes.astype(np.float32)
            tensor = QTensor(codes, None, spec, shape)
            if norm_plus_one(self._architecture, name):
                tensor = QTensor(tensor.dequantize() - np.float32(1), None, PLAIN["F32"][0], shape)
        elif len(info.shape) > 2:
            raise CheckpointError(f"tensor {shown(name)} has {len(info.shape)} dimensions in type {info.stored}", where=str(info.file))
        else:
            tensor = _decode(file, start, info, picked if len(info.shape) == 2 else None)
            if len(info.shape) == 1 and shape != info.shape:
                raise CheckpointError(f"tensor {shown(name)} is a quantized vector, which has no rows", where=str(info.file))
        return self.checked(tensor, info)

    def _order(self, name: str, info: TensorInfo) -> np.ndarray | None:
        part = heads_interleaved(self._architecture, name)
        if part is None:
            return None
        heads = self.config["num_attention_heads" if part == "q" else "num_key_value_heads"]
        if not heads or info.shape[0] % (2 * heads):
            raise CheckpointError(f"tensor {shown(name)} has {info.shape[0]} rows, which are not {heads} heads", where=str(info.file))
        return row_order(heads, info.shape[0])

    def tokenizer_files(self) -> dict[str, Any]:
        """The tokenizer, its config and generation settings, all out of the metadata."""
        metadata = self._source.metadata
        generation = {"eos_token_id": end_tokens(metadata), "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
                      "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id")}
        return {"tokenizer": tokenizer_of(metadata, self.path), "config": tokenizer_config(metadata),
                "generation": {key: value for key, value in generation.items() if isinstance(value, (int, list))}}

    def content_files(self) -> list[Path]:
        return [self.path]


def _decode(file: MappedFile, start: int, info: TensorInfo, picked: slice | np.ndarray | None) -> QTensor:
    """Rows of a quantized tensor, chunk by chunk, so that temporaries stay small."""
    kind = QUANTIZED[info.stored]
    width = info.shape[-1]
    row_bytes = info.nbytes // math.prod(info.shape[:-1])
    stored = file.array(np.uint8, info.nbytes, start).reshape(-1, row_bytes)
    stored_rows = np.arange(len(stored)) if picked is None else np.arange(len(stored))[picked]
    rows, groups = len(stored_rows), width // kind.spec.size
    signed = kind.spec.symmetric and formats.get(kind.spec.format).kind == "int"
    codes = np.empty((rows, width), np.int8 if signed else np.uint8)
    scales = np.empty((rows, groups), np.float32)
    offsets = None if kind.spec.symmetric else np.empty((rows, groups), np.float32)
    step = max(1, CHUNK // width)
    for a in range(0, rows, step):
        part = slice(a, min(a + step, rows))
        blocks = np.ascontiguousarray(stored[stored_rows[part]]).reshape(-1, BYTES_OF_BLOCK[info.stored])
        with np.errstate(invalid="ignore", over="ignore"):  # damaged scales are refused afterwards, by name
            some_codes, some_scales, some_offsets = kind.decode(blocks)
        codes[part] = some_codes.reshape(-1, width)
        scales[part] = some_scales.reshape(-1, groups)
        if offsets is not None and some_offsets is not None:
            offsets[part] = some_offsets.reshape(-1, groups)
    shape = (rows, width) if len(info.shape) == 2 else info.shape
    outer = np.float32(1) if formats.get(kind.spec.format).two_level else None
    return QTensor(codes.reshape(shape), scales, kind.spec, shape, offsets=offsets, outer=outer)


def _rename(source: GgufFile) -> dict[str, tuple[TensorInfo, GgufTensor]]:
    """Hugging Face name -> what it is and where. Raises CheckpointError for tensors and types that are not known."""
    path, architecture = source.file.path, Metadata(source).architecture
    parts = source.metadata.get("split.count", 0)
    if type(parts) is int and parts > 1:
        raise CheckpointError(f"is one of {parts} parts", where=str(path),
                              remedy="join them with llama-gguf-split --merge")
    found: dict[str, tuple[TensorInfo, GgufTensor]] = {}
    for tensor in source.tensors.values():
        spec = spec_of(tensor.stored)
        if spec is None and tensor.stored not in WHOLE:
            raise CheckpointError(f"tensor {shown(tensor.name)} is of type {tensor.stored}, which is not read", where=str(path),
                                  remedy=f"known: {', '.join([*PLAIN, *QUANTIZED])}")
        name = hugging_face_name(architecture, tensor.name)
        if name is None:
            raise CheckpointError(f"tensor {shown(tensor.name)} is unknown in architecture {architecture!r}", where=str(path),
                                  remedy="the model has parts that Octavo does not compute; take its safetensors folder")
        if name == "rope_freqs.weight" and architecture in ARCHITECTURES:
            continue  # has become rope_scaling in the config
        spec = PLAIN["F32"][0] if norm_plus_one(architecture, name) else spec
        found[name] = (TensorInfo(name, tensor.shape, spec, tensor.nbytes, path, tensor.stored), tensor)
    return found




class GgufCodec:
    def claims(self, path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return path.suffix == ".gguf" or file.read(4) == b"GGUF"

    def open(self, path: Path) -> GgufCheckpoint:
        return GgufCheckpoint(parse(MappedFile(path)))


CODEC = GgufCodec()
