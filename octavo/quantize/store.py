"""Store: the layers that are quantized already, on disk, so that a run that was killed goes on after the last of them; and the checkpoint that they make
together with the source."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..calibration.blocks import Weights
from ..checkpoints import Checkpoint, TensorInfo
from ..errors import CheckpointError
from ..qtensor import QTensor, quantize
from ..schemes import TensorSpec

SUFFIX = ".octavo-quantizing"
ARRAYS = ("codes", "scales", "zeros", "offsets", "outer", "order", "factors")
INPUTS, CACHE = "|input", "|cache"
FP32, BF16 = TensorSpec("fp32"), TensorSpec("bf16")


class Store:
    """A hidden folder beside the target: `header.json`, then a file for each finished layer. All of it belongs to one `signature`: what was there of
    another run is removed."""

    def __init__(self, out: Path, signature: Mapping[str, Any]) -> None:
        self.folder = out.parent / f".{out.name}{SUFFIX}"
        self._header = json.dumps(signature, sort_keys=True)
        self.resumed = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            header = self.folder / "header.json"
            if header.is_file() and header.read_text(encoding="utf-8") == self._header:
                self.resumed = any(self.folder.glob("*.npz"))
            else:
                shutil.rmtree(self.folder)
                self.folder.mkdir()
                self._write(header, lambda file: file.write(self._header.encode()))
        except (OSError, UnicodeDecodeError) as error:
            raise self._refused(error) from None

    def has(self, layer: int) -> bool:
        return self._path(layer).is_file()

    def put(self, layer: int, tensors: Mapping[str, QTensor], vectors: Mapping[str, np.ndarray], inputs: Mapping[str, np.float32] | None = None,
            cache: Mapping[str, np.ndarray] | None = None) -> None:
        """A finished layer: its weights, what else of it changed, and the static scales of its weights' inputs and of its keys and values."""
        arrays: dict[str, np.ndarray] = {}
        specs: dict[str, Any] = {}
        for name, tensor in tensors.items():
            specs[name] = {"spec": asdict(tensor.spec), "shape": list(tensor.shape), "rotation": tensor.rotation}
            for part in ARRAYS:
                if (array := getattr(tensor, part)) is not None:
                    arrays[f"{name}|{part}"] = np.asarray(array)
        arrays |= {f"{name}|": values for name, values in vectors.items()}
        arrays |= {f"{name}{INPUTS}": np.asarray(scale, np.float32) for name, scale in (inputs or {}).items()}
        arrays |= {f"{name}{CACHE}": scales for name, scales in (cache or {}).items()}
        arrays["specs"] = np.frombuffer(json.dumps(specs).encode(), np.uint8)
        try:
            self._write(self._path(layer), lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        except OSError as error:
            raise self._refused(error) from None

    def get(self, layer: int) -> tuple[dict[str, QTensor], dict[str, np.ndarray]]:
        """What was put."""
        with np.load(self._path(layer), allow_pickle=False) as held:
            specs = json.loads(held["specs"].tobytes())
            return {name: _tensor(held, name, about) for name, about in specs.items()}, {name[:-1]: held[name] for name in held.files if name.endswith("|")}

    def inputs(self, layer: int) -> dict[str, np.ndarray]:
        """Weight -> the static scale of its inputs, float32 []."""
        return self._ending(layer, INPUTS)

    def cache(self, layer: int) -> dict[str, np.ndarray]:
        """"model.layers.0.self_attn.k" (and ".v") -> its static scales, float32 [1] or [heads]."""
        return self._ending(layer, CACHE)

    def _ending(self, layer: int, mark: str) -> dict[str, np.ndarray]:
        with np.load(self._path(layer), allow_pickle=False) as held:
            return {name.removesuffix(mark): held[name] for name in held.files if name.endswith(mark)}

    def one(self, layer: int, name: str) -> QTensor:
        """One of its tensors alone; vectors in float32."""
        with np.load(self._path(layer), allow_pickle=False) as held:
            specs = json.loads(held["specs"].tobytes())
            if name in specs:
                return _tensor(held, name, specs[name])
            values = held[f"{name}|"]
            return QTensor(values, None, FP32, values.shape)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, layer: int) -> Path:
        return self.folder / f"{layer:05d}.npz"

    def _write(self, path: Path, fill: Callable[[BinaryIO], object]) -> None:
        """The whole file or none of it."""
        new = path.with_name(path.name + ".new")
        with new.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)

    def _refused(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"cannot be written: {error}", where=str(self.folder), remedy="free space, or choose another place")


def _tensor(held: Any, name: str, about: Mapping[str, Any]) -> QTensor:
    parts = {part: held[f"{name}|{part}"] for part in ARRAYS if f"{name}|{part}" in held.files}
    return QTensor(spec=TensorSpec(**about["spec"]), shape=tuple(about["shape"]), rotation=about["rotation"], **{"scales": None, **parts})


class QuantizedCheckpoint:
    """The source with its quantized layers in the place of the old ones; a Checkpoint for the converter.

    weights      the source's names, and what transforms made of the tensors outside the layers
    activations  name here -> what its inputs are quantized to
    layers       how many files the store has
    signature    names everything that decided about the result
    cache        what the key-value cache is quantized to
    """

    fresh = True  # see WriterOptions

    def __init__(self, source: Checkpoint, store: Store, weights: Weights, activations: Mapping[str, TensorSpec], layers: int, signature: str,
                 cache: TensorSpec | None = None) -> None:
        self._source, self._store, self._signature = source, store, signature
        found = weights.found
        self.path, self.codec, self.config = source.path, source.codec, {**source.config, **weights.config}
        self.notes: Sequence[str] = list(source.notes)
        self.cache = cache
        self._cache_scales: dict[str, np.ndarray] = {}
        self._where: dict[str, tuple[str, int]] = {}
        self._held: tuple[str, QTensor] | None = None
        self._inputs: dict[str, np.ndarray] = {}
        tensors = dict(source.tensors)
        for layer in range(layers):
            quantized, vectors = store.get(layer)
            self._cache_scales |= store.cache(layer)
            self._inputs |= {found[name]: scale for name, scale in store.inputs(layer).items()}
            for name, tensor in quantized.items():
                info = tensors[found[name]]
                self._where[info.name] = name, layer
                tensors[info.name] = replace(info, spec=tensor.spec, activation=activations.get(name))  # its bytes stay the source's
            for name, values in vectors.items():
                info = tensors[found[name]]
                self._where[info.name] = name, layer
                tensors[info.name] = replace(info, spec=FP32, nbytes=values.nbytes)
        edits = {found.get(name, name): (found[of], change) for name, (of, change) in weights.edits.items()}
        self._edits = {name: edit for name, edit in edits.items() if name not in self._where}
        for name, (of, _) in self._edits.items():
            info = source.tensors[of]
            spec = info.spec if info.spec is not None and not info.spec.quantized else BF16
            tensors[name] = replace(info, name=name, spec=spec, nbytes=spec.packed_bytes(info.shape))
        self.tensors: Mapping[str, TensorInfo] = tensors

    def read(self, name: str, rows: slice | None = None) -> QTensor:
        if name in self._edits:
            of, change = self._edits[name]
            spec = self.tensors[name].spec
            assert spec is not None
            return quantize(change(np.asarray(self._source.read(of, rows).dequantize(), np.float32)), spec)
        if name not in self._where:
            return self._source.read(name, rows)
        held = self._held
        if held is None or held[0] != name:  # weights are read in pieces
            mine, layer = self._where[name]
            held = self._held = name, self._store.one(layer, mine)
        tensor = held[1]
        if not tensor.spec.quantized:
            values = tensor.codes if rows is None else tensor.codes[rows]
            return QTensor(values, None, FP32, values.shape)
        if rows is None:
            return tensor
        first, last, _ = rows.indices(tensor.shape[0])
        cells = tensor.spec.size if tensor.spec.granularity == "block" else 1
        whole = tensor.spec.granularity == "tensor"

        def cut(a: Any) -> Any:
            return a if a is None or whole else a[first // cells : -(-last // cells)]

        return replace(tensor, codes=tensor.codes[first:last], shape=(last - first, *tensor.shape[1:]), scales=cut(tensor.scales), zeros=cut(tensor.zeros),
                       offsets=cut(tensor.offsets))

    def input_scales(self) -> dict[str, np.ndarray]:
        """Weight, by its name in the source -> the static scale of its inputs, float32 []."""
        return self._inputs

    def cache_scales(self) -> dict[str, np.ndarray]:
        """"model.layers.0.self_attn.k" (and ".v") -> the static scales of the key-value cache, float32 [1] or [heads]."""
        return self._cache_scales

    def digests(self, cache_dir: Path | None = None) -> dict[str, str]:
        """Of the source's files; and of everything that decided about the result, so that an interrupted writing goes on only with the same."""
        return {**getattr(self._source, "digests")(cache_dir), "quantization": self._signature}  # noqa: B009  # every mapped checkpoint has it

    def tokenizer_files(self) -> dict[str, Any]:
        return self._source.tokenizer_files()

    def content_key(self, cache_dir: Path | None = None) -> str:
        return self._signature

    def release(self, name: str) -> None:
        if name not in self._where:
            with contextlib.suppress(KeyError):
                self._source.release(self._edits[name][0] if name in self._edits else name)

    def __getattr__(self, name: str) -> Any:
        if name == "as_stored":  # tensors that are no weights move as they are
            return self._source.as_stored  # type: ignore[attr-defined]
        raise AttributeError(name)
