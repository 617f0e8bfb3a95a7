"""GGUF: llama.cpp's file, with tensors, config and tokenizer in one.

What it is: a mapped file of tensors in ggml's types. All are read, codebooks (IQ) and ternary ones
too, each to the bit what ggml's own dequantization gives; architectures llama (Mistral too), qwen2, qwen3, smollm3 and gemma3 (text)
under Hugging Face's names and conventions. A model in several files is opened by the name of any of them. Written are plain types, Q4_0 to Q8_0,
the K types and llama.cpp's mixes of them, IQ4_NL, TQ1_0, TQ2_0 and MXFP4, in one file.
When to choose it: where a model is published in it; it is small, and one file.
Limits: little endian only; experts are not read; codebook types (IQ1 to IQ3) are not written.
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
from ._gguf_reader import GgufFile, GgufTensor
from ._gguf_split import open_parts
from ._gguf_tokenizer import end_tokens, tokenizer_config, tokenizer_of
from ._gguf_types import PLAIN, QUANTIZED, STORAGE, WHOLE, spec_of
from ._json import shown
from ._mapped import MappedCheckpoint, MappedFile, row_range
from ._shapes import check_shapes
from .base import TensorInfo, Writer, WriterOptions

CHUNK = 1 << 19  # numbers decoded at a time
BYTES_OF_BLOCK = {storage.name: storage.bytes for storage in STORAGE.values()}

OF_A_FILE = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment")  # not of the model


class GgufCheckpoint(MappedCheckpoint):
    """A .gguf file, mapped."""

    codec = "gguf"

    def __init__(self, source: GgufFile) -> None:
        path = source.file.path
        config, tensors = config_of(source), _rename(source)
        if tensors:  # a file may hold nothing but a vocabulary
            check_shapes(config, {name: info for name, (info, _) in tensors.items()}, path)
        super().__init__(path, config, {name: info for name, (info, _) in tensors.items()},
                         {name: (tensor.file, tensor.start) for name, (_, tensor) in tensors.items()})
        self._source, self._architecture = source, Metadata(source).architecture
        self._scales = _tensor_scales(source)
        self.notes = _unused(source)

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
            tensor = _decode(file, start, info, picked if len(info.shape) == 2 else None, self._outer(info))
            if len(info.shape) == 1 and shape != info.shape:
                raise CheckpointError(f"tensor {shown(name)} is a quantized vector, which has no rows", where=str(info.file))
        return self.checked(tensor, info)

    def _outer(self, info: TensorInfo) -> float:
        """The scale of a whole NVFP4 tensor, which stands in a tensor of its own; 1 where there is none."""
        tensor = self._scales.get(info.name)
        if tensor is None:
            return 1.0
        if tensor.stored != "F32" or math.prod(tensor.shape) != 1:
            raise CheckpointError(f"tensor {shown(tensor.name)} is no single F32", where=str(tensor.file.path), remedy="fetch the file again")
        return float(tensor.file.array("<f4", 1, tensor.start)[0])

    def _order(self, name: str, info: TensorInfo) -> np.ndarray | None:
        part = heads_interleaved(self._architecture, name)
        if part is None:
            return None
        heads = self.config["num_attention_heads" if part == "q" else "num_key_value_heads"]
        if not heads or info.shape[0] % (2 * heads):
            raise CheckpointError(f"tensor {shown(name)} has {info.shape[0]} rows, which are not {heads} heads", where=str(info.file))
        return row_order(heads, info.shape[0])

    def stored_metadata(self) -> dict[str, bytes]:
        """What the metadata says of tokenizer and model, as it lies in the file (type and value), by key: for another GGUF file."""
        return {key: self._source.file.bytes(begin, end - begin) for key, (begin, end) in self._source.spans.items()
                if key.startswith(("tokenizer.", "general.")) and key not in OF_A_FILE}

    def tokenizer_files(self) -> dict[str, Any]:
        """The tokenizer, its config and generation settings, all out of the metadata."""
        metadata = self._source.metadata
        generation = {"eos_token_id": end_tokens(metadata), "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
                      "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id")}
        return {"tokenizer": tokenizer_of(metadata, self.path), "config": tokenizer_config(metadata),
                "generation": {key: value for key, value in generation.items() if isinstance(value, (int, list))}}

    def content_files(self) -> list[Path]:
        return [part.path for part in self._source.parts or (self._source.file,)]


def _decode(file: MappedFile, start: int, info: TensorInfo, picked: slice | np.ndarray | None, outer: float = 1.0) -> QTensor:
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
    second = np.float32(outer) if formats.get(kind.spec.format).two_level else None
    return QTensor(codes.reshape(shape), scales, kind.spec, shape, offsets=offsets, outer=second)


def _rename(source: GgufFile) -> dict[str, tuple[TensorInfo, GgufTensor]]:
    """Hugging Face name -> what it is and where. Raises CheckpointError for tensors and types that are not known."""
    architecture = Metadata(source).architecture
    scales = {tensor.name for tensor in _tensor_scales(source).values()}
    found: dict[str, tuple[TensorInfo, GgufTensor]] = {}
    for tensor in source.tensors.values():
        spec, path = spec_of(tensor.stored), tensor.file.path
        if tensor.name in scales or _input_scale(architecture, tensor.name):
            continue
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


def _tensor_scales(source: GgufFile) -> dict[str, GgufTensor]:
    """Weight (Hugging Face's name) -> the tensor `blk.0.attn_q.scale` with the second-level scale of an NVFP4 `blk.0.attn_q.weight`.

    Raises CheckpointError where a weight of another type has one: nobody would apply it.
    """
    architecture, found = Metadata(source).architecture, {}
    for name, tensor in source.tensors.items():
        if architecture in ARCHITECTURES and name.endswith(".scale"):
            weight = source.tensors.get(name.removesuffix(".scale") + ".weight")
            if weight is None or weight.stored != "NVFP4":
                raise CheckpointError(f"tensor {shown(name)} is the scale of no NVFP4 weight", where=str(tensor.file.path),
                                      remedy="the model has parts that Octavo does not compute; take its safetensors folder")
            found[str(hugging_face_name(architecture, weight.name))] = tensor
    return found


def _input_scale(architecture: str, name: str) -> bool:
    return architecture in ARCHITECTURES and name.endswith(".input_scale")


def _unused(source: GgufFile) -> list[str]:
    count = sum(_input_scale(Metadata(source).architecture, name) for name in source.tensors)
    return [f"{count} input scales (static scales of 4-bit activations) are not used: activations are computed as they come"] if count else []


class GgufCodec:
    def claims(self, path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return path.suffix == ".gguf" or file.read(4) == b"GGUF"

    def open(self, path: Path) -> GgufCheckpoint:
        return GgufCheckpoint(open_parts(path))

    def writer(self, options: WriterOptions) -> Writer:
        """Raises UsageError for a type, a model or a tokenizer that is not written."""
        from ._gguf_writer import GgufWriter

        return GgufWriter(options)


CODEC = GgufCodec()
