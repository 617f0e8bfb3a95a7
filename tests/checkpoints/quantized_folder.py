"""Folders of quantized weights, from tensors of the libraries that make them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from octavo.checkpoints import Checkpoint, Writer, WriterOptions, open_checkpoint
from octavo.checkpoints._quantized import QuantizedCheckpoint

Q = "model.layers.0.self_attn.q_proj"


def write_folder(path: Path, tensors: Mapping[str, torch.Tensor], quantization: dict[str, Any] | None, config: dict[str, Any] | None = None,
                 **files: dict[str, Any]) -> Path:
    """`files` are further JSON files, by name without the ending."""
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    described = {"model_type": "test", **(config or {})} | ({"quantization_config": quantization} if quantization is not None else {})
    for name, content in {"config": described, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


DTYPES = {"U8": torch.uint8, "I8": torch.int8, "F32": torch.float32, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
          "F8_E8M0": torch.float8_e8m0fnu, "I32": torch.int32, "I64": torch.int64, "F16": torch.float16}
CODES = {"U8": "u1", "I8": "i1", "F32": "f4", "BF16": "u2", "F8_E4M3": "u1", "F8_E8M0": "u1", "I32": "i4", "I64": "i8", "F16": "f2"}


def written(checkpoint: Checkpoint, writer: Writer, options: WriterOptions, path: Path, names: list[str] | None = None, rows: int = 512) -> Path:
    """Weights of a checkpoint as a Writer puts them into a folder, in pieces as the converter does."""
    tensors: dict[str, torch.Tensor] = {}
    specs = {}
    for name in names or [n for n, info in checkpoint.tensors.items() if info.spec is not None and info.spec.quantized]:
        info = checkpoint.tensors[name]
        assert info.spec is not None and writer.why_not(name, info.spec, info.shape) is None
        specs[name] = info.spec
        parts = writer.parts(name, info.spec, info.shape)
        arrays = {part: np.zeros(p.shape, CODES[p.dtype]) for part, p in parts.items()}
        whole = info.spec.granularity == "tensor"
        for first in range(0, info.shape[0], rows):
            piece = None if whole else slice(first, min(first + rows, info.shape[0]))
            writer.fill(name, checkpoint.read(name, piece), first, arrays)
            if whole:
                break
        tensors |= {part: torch.from_numpy(arrays[part]).view(DTYPES[p.dtype]) for part, p in parts.items()}
    for name, (part, array) in writer.extras(specs, []).items():
        tensors[name] = torch.from_numpy(np.asarray(array)).view(DTYPES[part.dtype])
    described = writer.config(specs, [])
    return write_folder(path, tensors, described.get("quantization_config"), {}, **{
        name.removesuffix(".json"): content for name, content in writer.files(specs, []).items()})


def reopened(checkpoint: Checkpoint, codec: Any, path: Path, **options: Any) -> Checkpoint:
    """The checkpoint, written by another codec and opened again."""
    specs = {name: info.spec for name, info in checkpoint.tensors.items() if info.spec is not None}
    activations = {name: info.activation for name, info in checkpoint.tensors.items() if info.activation is not None}
    assert isinstance(checkpoint, QuantizedCheckpoint)
    given = WriterOptions(**{"specs": specs, "activations": activations, "input_scales": checkpoint.input_scales(), "cache": checkpoint.cache,
                             "cache_scales": checkpoint.cache_scales(), **options})
    return open_checkpoint(written(checkpoint, codec.writer(given), given, path))
