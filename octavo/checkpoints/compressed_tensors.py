"""compressed-tensors: what llm-compressor writes, and vLLM's own format.

What it is: config.json with groups of modules and what becomes of their weights, inputs and KV cache; per weight `weight_packed` (words of 2 to 8 bit
integers, or FP4 two to a byte) or `weight` (INT8, FP8), with `weight_scale` and whatever belongs to it.
When to choose it: handing a model to vLLM or SGLang, in whatever precision; it is the only format of the field that can hold them all, mixed too.
Limits: no 2:4 sparse or Marlin layouts, no transforms at run time (those that are folded into the weights are none). A config that names a layer whose
tensors are plain, or the other way, is refused. Act-order is read and not written: the library dropped it.
pack-quantized has two packings under one name for 3, 5, 6 and 7 bits (values across words since June 2026, padded words before): told apart by shape.
Source: vllm-project/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._cache_scales import is_cache_scale, with_cache
from ._compressed_config import Settings, read_settings
from ._compressed_layers import SIDE, make_layer
from ._compressed_writer import CompressedTensorsWriter
from ._folder import quant_method
from ._quantized import Layer, QuantizedCheckpoint, Raw, open_quantized, quantization_config
from .base import Writer, WriterOptions

METHOD = "compressed-tensors"


def _layers(settings: Settings, raw: Raw) -> Iterator[Layer]:
    modules: dict[str, None] = {}
    for name in raw.entries:
        module, _, part = name.rpartition(".")
        entry = raw.entries[name]
        codes = part == "weight" and entry.dtype in ("I8", "F8_E4M3") and len(entry.shape) == 2
        if codes or (part in SIDE and part.startswith("weight")):
            modules[module] = None
    for module in modules:
        group = settings.group(module)
        part = next(f"{module}.{part}" for part in ("weight_packed", "weight", *SIDE) if f"{module}.{part}" in raw)
        if group is None or group.weight is None:
            why = "the config ignores its layer" if settings.ignored(module) else "no group of the config names its layer"
            raise raw.error(part, f"is quantized, but {why}")
        yield make_layer(raw, module, group, settings.where)
    _check_plain(settings, raw)


def _check_plain(settings: Settings, raw: Raw) -> None:
    """Every matrix of a decoder layer that a group names must be quantized."""
    for name, entry in raw.entries.items():
        module, _, part = name.rpartition(".")
        if part == "weight" and len(entry.shape) == 2 and ".layers." in name and entry.dtype in ("F32", "F16", "BF16"):
            group = settings.expected(module)
            if group is not None:
                raise raw.error(name, f"is not quantized ({entry.dtype}), but group {group.name!r} of the config says that it is")


class CompressedTensorsCodec:
    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        quantization: dict[str, Any] = quantization_config(path)
        settings = read_settings(quantization, f"{path / 'config.json'}: quantization_config")
        checkpoint = open_quantized(path, "compressed_tensors", lambda config, found, raw: _layers(settings, raw), used=is_cache_scale)
        if any(group.outputs for group in settings.groups):
            checkpoint.notes = [*checkpoint.notes, "the config wants outputs of layers quantized (output_activations): they stay as computed, as in vLLM"]
        return with_cache(checkpoint, settings.cache)

    def writer(self, options: WriterOptions) -> Writer:
        return CompressedTensorsWriter(options)


CODEC = CompressedTensorsCodec()
