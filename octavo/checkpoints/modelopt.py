"""modelopt: what NVIDIA's Model Optimizer exports for Hugging Face (`export_hf_checkpoint`).

What it is: `X.weight` beside `X.weight_scale` and further scales, by the algorithm that hf_quant_config.json or config.json's quantization_config
names for all layers or, for MIXED_PRECISION, for each: FP8 (one scale, or one per row, or blocks), INT8, INT4 (AWQ), NVFP4, MXFP4, MXFP8. Scales of
the key-value cache stand at the projections (`k_proj.k_scale`).
When to choose it: NVIDIA's own checkpoints, TensorRT-LLM, vLLM and SGLang on Hopper and Blackwell.
Limits: SVDQuant and stacks of experts in one tensor are refused. W4A8_AWQ's second scale rounds weights to FP8 in some kernels and is not applied:
the numbers are those of the integers. Scales of the cache are kept when converting; the offsets of an affine NVFP4 cache are not applied.
Source: NVIDIA ModelOpt, torch/export (quant_utils.py, unified_export_hf.py, convert_hf_config.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..schemes import TensorSpec
from ._cache_scales import is_cache_scale, with_cache
from ._folder import MODELOPT_FILE, quant_method
from ._json import read_object, shown
from ._modelopt_forms import NVFP4_INPUTS, known_algorithm, modelopt_layer, refused
from ._modelopt_writer import METHOD, ModeloptWriter
from ._quantized import Layer, QuantizedCheckpoint, Raw, open_quantized, quantization_config
from .base import WriterOptions

MIXED = "MIXED_PRECISION"
CACHES = {"FP8": TensorSpec("fp8e4m3", "tensor"), "INT8": TensorSpec("int8", "tensor"), "NVFP4": NVFP4_INPUTS, "NVFP4_AFFINE": NVFP4_INPUTS}
MOST_PATTERNS, LONGEST_PATTERN = 10_000, 500


@dataclass(frozen=True)
class Settings:
    """What the two config files say, in one form. layers: module -> (algorithm, group size), for MIXED_PRECISION."""

    where: str
    algorithm: str | None
    group: int | None
    layers: Mapping[str, tuple[str, int | None]] | None
    excluded: tuple[str, ...]
    cache: str | None

    def of(self, module: str) -> tuple[str, int | None]:
        """(algorithm, group size) of a module that has scales. Raises CheckpointError."""
        if self.layers is None:
            if self.algorithm is None:
                raise CheckpointError(f"names no quant_algo, but module {shown(module)} has scales", where=self.where, remedy="fetch the model again")
            return self.algorithm, self.group
        if module not in self.layers:
            raise CheckpointError(f"quantized_layers does not list module {shown(module)}, which has scales", where=self.where,
                                  remedy="weights and config do not fit each other: fetch the model again")
        return self.layers[module]


def read_settings(path: Path) -> Settings:
    """From config.json, hf_quant_config.json or both. Raises CheckpointError, also where they contradict each other."""
    found = quantization_config(path)
    inner = found.get("quantization")
    said = inner if isinstance(inner, dict) and "quant_algo" not in found else found
    where = f"{path / 'config.json'}: quantization_config"
    if (path / MODELOPT_FILE).is_file():
        beside = read_object(path / MODELOPT_FILE).get("quantization")
        beside = beside if isinstance(beside, dict) else {}
        if said.get("quant_algo") and beside.get("quant_algo") and said["quant_algo"] != beside["quant_algo"]:
            raise CheckpointError(f"quant_algo is {shown(beside['quant_algo'])}, in config.json it is {shown(said['quant_algo'])}",
                                  where=str(path / MODELOPT_FILE), remedy="the files are of two exports: fetch the model again")
        said = {**said, **{key: value for key, value in beside.items() if value is not None}}
        where = str(path / MODELOPT_FILE)
    name, layers = said.get("quant_algo"), None
    if name == MIXED:
        listed = said.get("quantized_layers")
        if not isinstance(listed, dict) or not all(isinstance(entry, dict) for entry in listed.values()):
            raise CheckpointError("is of mixed precision and has no quantized_layers", where=where, remedy="fetch the model again")
        layers = {module: (_algorithm(entry.get("quant_algo"), where), _group(entry, where)) for module, entry in listed.items()}
    algorithm = None if name is None or layers is not None else _algorithm(name, where)
    patterns = said.get("exclude_modules", said.get("ignore")) or []
    if not isinstance(patterns, list) or len(patterns) > MOST_PATTERNS or not all(isinstance(p, str) and len(p) <= LONGEST_PATTERN for p in patterns):
        raise CheckpointError("exclude_modules is no list of names", where=where)
    return Settings(where, algorithm, _group(said, where), layers, tuple(patterns), _cache(said))


def _algorithm(name: object, where: str) -> str:
    found = known_algorithm(name)
    if found is None:
        raise CheckpointError(refused(name), where=where, remedy="take the unquantized model, or one exported with another algorithm")
    return found


def _group(said: Mapping[str, Any], where: str) -> int | None:
    size = said.get("group_size")
    if size is not None and (type(size) is not int or not 0 <= size <= 1 << 20):
        raise CheckpointError(f"group_size is {shown(size)}, not a whole number", where=where)
    return size or None


def _cache(said: Mapping[str, Any]) -> str | None:
    """The cache's algorithm: a name, or as compressed-tensors writes it."""
    scheme = said.get("kv_cache_quant_algo") or said.get("kv_cache_scheme")
    if isinstance(scheme, dict):
        return {("float", 8): "FP8", ("int", 8): "INT8", ("float", 4): "NVFP4"}.get((str(scheme.get("type")), scheme.get("num_bits") or 0), "unknown")
    return None if scheme is None else str(scheme).upper()


class ModeloptCodec:
    def writer(self, options: WriterOptions) -> ModeloptWriter:
        return ModeloptWriter(options)

    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        settings = read_settings(path)
        contradicted: list[str] = []

        def layers(config: dict[str, Any], quantization: dict[str, Any], raw: Raw) -> Iterator[Layer]:
            for name in raw.entries:
                module, mark, _ = name.rpartition(".weight_scale")
                if mark and name.endswith(".weight_scale"):
                    if any(fnmatchcase(module, pattern) for pattern in settings.excluded):
                        contradicted.append(module)
                    yield modelopt_layer(f"{module}.", *settings.of(module), raw)

        checkpoint = open_quantized(path, METHOD, layers, used=is_cache_scale)
        checkpoint = with_cache(checkpoint, CACHES.get(settings.cache or ""))
        if settings.cache is not None and settings.cache not in CACHES:
            checkpoint.notes = [*checkpoint.notes, f"the config's cache format {shown(settings.cache)} is not known: the cache stays in 16 bits"]
        if contradicted:
            checkpoint.notes = [*checkpoint.notes, f"{len(contradicted)} modules that the config excludes from quantization are quantized "
                                                   f"({shown(contradicted[0])}, ...): they are read as such"]
        return checkpoint


CODEC = ModeloptCodec()
