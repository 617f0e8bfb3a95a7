"""Nearest: a checkpoint whose weights are rounded to nearest when they are read. What is quantized without calibration (embedding and output layer); and,
before any work, what stands for the result when the target is asked whether it could hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints import Checkpoint, TensorInfo
from ..qtensor import QTensor, quantize
from ..schemes import TensorSpec

SOME = 32  # rows


class Nearest:
    """`source` with the tensors that `specs` names (as the files do) in these precisions; `activations`: what their inputs are quantized to, `cache`: what
    the key-value cache is. Of the rows that are read a few stand for all, and scales that rows share are those of the rows that are read: enough to learn
    whether a format holds them, not to be written."""

    fresh = True  # see WriterOptions

    def __init__(self, source: Checkpoint, specs: Mapping[str, TensorSpec], activations: Mapping[str, TensorSpec],
                 cache: TensorSpec | None = None) -> None:
        self._source, self._specs = source, specs
        self.path, self.codec, self.config, self.cache = source.path, source.codec, source.config, cache
        self.notes: Sequence[str] = source.notes
        changed = {name: replace(source.tensors[name], spec=spec, activation=activations.get(name)) for name, spec in specs.items()}
        self.tensors: Mapping[str, TensorInfo] = {**source.tensors, **changed}

    def read(self, name: str, rows: slice | None = None) -> QTensor:
        if name not in self._specs:
            return self._source.read(name, rows)
        spec, (first, last, _) = self._specs[name], (rows or slice(None)).indices(self.tensors[name].shape[0])
        if spec.granularity not in ("group", "channel"):
            return quantize(np.asarray(self._source.read(name, rows).dequantize(), np.float32), spec)
        some = quantize(np.asarray(self._source.read(name, slice(first, min(first + SOME, last))).dequantize(), np.float32), spec)
        place = np.arange(last - first) % len(some.codes)
        return replace(some, codes=some.codes[place], shape=(last - first, *some.shape[1:]), scales=np.asarray(some.scales)[place],
                       zeros=None if some.zeros is None else some.zeros[place])

    def input_scales(self) -> dict[str, np.ndarray]:
        """1 for the inputs of each weight that will have a static scale."""
        return {name: np.ones((), np.float32) for name in self._specs if (spec := self.tensors[name].activation) is not None and not spec.dynamic}

    def cache_scales(self) -> dict[str, np.ndarray]:
        """1 for keys and values, where they will have static scales."""
        return {} if self.cache is None or self.cache.dynamic else {f"model.layers.0.self_attn.{place}": np.ones(1, np.float32) for place in "kv"}

    def tokenizer_files(self) -> dict[str, Any]:
        return self._source.tokenizer_files()

    def content_key(self, cache_dir: Path | None = None) -> str:
        return self._source.content_key(cache_dir)

    def release(self, name: str) -> None:
        self._source.release(name)

    def __getattr__(self, name: str) -> Any:
        if name in ("as_stored", "digests"):
            return getattr(self._source, name)
        raise AttributeError(name)
