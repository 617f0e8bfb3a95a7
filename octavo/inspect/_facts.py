"""Facts of a checkpoint: who made it, in which precision its weights are, by class, what it says of the KV cache, what is odd about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..checkpoints import Checkpoint, TensorInfo
from ..checkpoints.octavo import OctavoCheckpoint
from ..errors import OctavoError
from ..schemes import Scheme, TensorSpec, write_tensor

BF16 = TensorSpec("bf16")


@dataclass(frozen=True)
class WeightClass:
    """Weights of one scheme. bits: true bits per weight, everything that is stored for them counted."""

    scheme: str
    tensors: int
    parameters: int
    bytes: int
    example: str

    @property
    def bits(self) -> float:
        return 8 * self.bytes / max(1, self.parameters)


@dataclass
class Facts:
    """producer  the tool that wrote it and its version, "" where the files do not say
    scheme       of most quantized weights, as grammar; of an unquantized model that of its weights
    classes      by scheme, largest first; weights only (matrices)
    cache        what the files say of the KV cache, as grammar, or ""
    cache_scales how many stored scales, smallest and largest, or None
    notes        a sentence each
    """

    format: str
    model_type: str
    producer: str
    scheme: str
    bits_per_weight: float
    classes: list[WeightClass]
    cache: str
    cache_scales: dict[str, Any] | None
    notes: list[str]
    quantization: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"producer": self.producer, "scheme": self.scheme, "bits_per_weight": round(self.bits_per_weight, 4),
                "classes": [{**vars(one), "bits_per_weight": round(one.bits, 4)} for one in self.classes], "cache": self.cache,
                "cache_scales": self.cache_scales, "notes": self.notes}


def facts_of(checkpoint: Checkpoint) -> Facts:
    """Reads no weights, only the scales of the KV cache where there are some."""
    weights = [info for info in checkpoint.tensors.values() if len(info.shape) == 2 and info.spec is not None and info.name.endswith(".weight")]
    classes = _classes(weights, checkpoint.cache or BF16)
    main = next((one for one in classes if not one.scheme.startswith(("W16", "W32", "Wfp16"))), classes[0] if classes else None)
    config = checkpoint.config
    said: dict[str, Any] = next((part["quantization_config"] for part in (config, config.get("text_config")) if isinstance(part, dict) and isinstance(
        part.get("quantization_config"), dict)), {})
    parameters = sum(one.parameters for one in classes)
    return Facts(checkpoint.codec, str(config.get("model_type")), _producer(checkpoint, said), main.scheme if main else "",
                 8 * sum(one.bytes for one in classes) / max(1, parameters), classes, _cache(checkpoint),
                 _cache_scales(checkpoint), [*checkpoint.notes, *_own_code(config)], said)


def _classes(weights: list[TensorInfo], cache: TensorSpec) -> list[WeightClass]:
    groups: dict[str, list[TensorInfo]] = {}
    for info in weights:
        assert info.spec is not None
        try:
            scheme = str(Scheme(info.spec, info.activation or BF16, cache))
        except OctavoError:  # a spec that no linear can have (a stack of codes)
            scheme = info.stored
        groups.setdefault(scheme, []).append(info)
    found = [WeightClass(scheme, len(same), sum(math.prod(i.shape) for i in same), sum(i.nbytes for i in same), same[0].name)
             for scheme, same in groups.items()]
    return sorted(found, key=lambda one: -one.bytes)


def _producer(checkpoint: Checkpoint, said: Mapping[str, Any]) -> str:
    """"gptqmodel 7.7.0": whatever the config (or the metadata of a GGUF file) says of the tool."""
    producer, meta = said.get("producer"), said.get("meta")
    if isinstance(producer, dict):
        return " ".join(str(producer[key]) for key in ("name", "version") if producer.get(key))
    quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
    if quantizer:
        return ", ".join(str(one).replace(":", " ") for one in (quantizer if isinstance(quantizer, list) else [quantizer]))
    for key, name in (("autoround_version", "auto-round"), ("version", "compressed-tensors")):
        if isinstance(said.get(key), str) and (name != "compressed-tensors" or said.get("quant_method") == name):
            return f"{name} {said[key]}"
    metadata = getattr(getattr(checkpoint, "_source", None), "metadata", {})
    return str(metadata.get("general.quantized_by") or metadata.get("general.author") or "")


def _cache(checkpoint: Checkpoint) -> str:
    """As grammar; of Octavo's own checkpoints, which tell keys, values and layers apart, in words where it must be."""
    if checkpoint.cache is not None:
        return write_tensor(checkpoint.cache, "cache")
    spec = checkpoint.cache_plan if isinstance(checkpoint, OctavoCheckpoint) else None
    return str(spec) if spec is not None else ""


def _cache_scales(checkpoint: Checkpoint) -> dict[str, Any] | None:
    read = getattr(checkpoint, "cache_scales", None)
    try:
        scales = read() if read is not None else {}
    except OctavoError:
        return None
    if not scales:
        return None
    values = np.concatenate([np.asarray(value, np.float32).reshape(-1) for value in scales.values()])
    return {"tensors": len(scales), "smallest": float(values.min()), "largest": float(values.max())}


def _own_code(config: Mapping[str, Any]) -> list[str]:
    code = config.get("auto_map")
    return ["the config names code of its own (auto_map), which Octavo never runs"] if isinstance(code, dict) and code else []
