"""Room for biases in a model that has none: a checkpoint whose linears have biases of zero, where its architecture has a place for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints import Checkpoint, TensorInfo
from ..errors import UsageError
from ..layers import declare
from ..models import read_model
from ..qtensor import QTensor
from ..schemes import TensorSpec

FP32 = TensorSpec("fp32")
PLACES = {"llama": ("attention_bias", "mlp_bias"), "smollm3": ("attention_bias", "mlp_bias"), "qwen3": ("attention_bias",), "gemma3_text": ("attention_bias",)}


class WithBiases:
    """`source` with zeros of float32 for the tensors `added` (name -> length), described by `config`; a Checkpoint."""

    def __init__(self, source: Checkpoint, config: dict[str, Any], added: Mapping[str, int]) -> None:
        self._source, self._added = source, added
        self.path, self.codec, self.config, self.cache = source.path, source.codec, config, source.cache
        self.notes: Sequence[str] = source.notes
        file = next(iter(source.tensors.values())).file
        new = {name: TensorInfo(name, (size,), FP32, 4 * size, file, "F32") for name, size in added.items()}
        self.tensors: Mapping[str, TensorInfo] = {**source.tensors, **new}

    def read(self, name: str, rows: slice | None = None) -> QTensor:
        if name not in self._added:
            return self._source.read(name, rows)
        values = np.zeros(self._added[name], np.float32)[rows if rows is not None else slice(None)]
        return QTensor(values, None, FP32, values.shape)

    def tokenizer_files(self) -> dict[str, Any]:
        return self._source.tokenizer_files()

    def content_key(self, cache_dir: Path | None = None) -> str:
        return self._source.content_key(cache_dir)

    def release(self, name: str) -> None:
        if name not in self._added:
            self._source.release(name)

    def __getattr__(self, name: str) -> Any:
        if name in ("as_stored", "digests"):
            return getattr(self._source, name)
        raise AttributeError(name)


def with_biases(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint`, with a bias for every linear that can have one. Raises UsageError where no more than it has can be."""
    kind = str(checkpoint.config.get("model_type"))
    config = {**checkpoint.config, **dict.fromkeys(PLACES.get(kind, ()), True)}
    model = read_model(config)
    here = {model.canonical(name): name for name in checkpoint.tensors}
    added = {}
    for name, want in declare(model.describe).wanted.items():
        weight = f"{name.removesuffix('bias')}weight"
        if name.endswith(".bias") and name not in here and weight in here:
            added[f"{here[weight].removesuffix('weight')}bias"] = want.shape[0]
    if not added:
        raise UsageError(f"a model of type {kind!r} has no place for more biases", where=str(checkpoint.path),
                         remedy=f"leave bias_correction.add away; it is for {', '.join(PLACES)}")
    return WithBiases(checkpoint, config, added)
