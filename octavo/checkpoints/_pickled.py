"""pickled: PyTorch's own files (pytorch_model.bin, shards of it, *.pt), for models that have nothing else.

What it is: config.json beside zip archives of tensors whose table of contents is a pickle. Read only where the user says so (`--allow-pickle`),
only by torch's weights_only loader, which knows tensors and plain containers and calls nothing else, and only mapped.
When to choose it: never for keeping; to convert an old model once.
Limits: needs the extra octavo[torch]; files in torch's format of before 1.6 are refused, as they cannot be mapped; unquantized numbers only.
Source: torch.load's documentation, `weights_only`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, MissingExtraError
from ..qtensor import QTensor
from ._folder import SMALL_FILES, quant_method, read_tokenizer_files
from ._json import read_object, shown
from ._mapped import MappedCheckpoint, row_range
from ._shapes import check_shapes
from .base import TensorInfo
from .safetensors import SPECS

INDEX = "pytorch_model.bin.index.json"
ENDINGS = (".bin", ".pt", ".pth")
TYPES = {"torch.float32": "F32", "torch.float64": "F64", "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.bool": "BOOL", "torch.uint8": "U8",
         "torch.int8": "I8", "torch.int16": "I16", "torch.int32": "I32", "torch.int64": "I64"}
UNDERSTOOD = ("F32", "F64", "F16", "BF16")


class PickledCheckpoint(MappedCheckpoint):
    """A folder of mapped PyTorch files."""

    codec = "pickled"

    def __init__(self, path: Path, config: dict[str, Any], tensors: dict[str, TensorInfo], held: dict[str, Any], files: list[Path]) -> None:
        super().__init__(path, config, tensors, {})
        self._held, self._files = held, files

    def read(self, name: str, rows: slice | None = None) -> QTensor:
        """See Checkpoint.read: a view of the mapped file where the tensor lies in it row by row."""
        import torch

        info = self.info(name)
        if info.spec is None:
            raise CheckpointError(f"tensor {shown(name)} of type {info.stored} is no weight", where=str(info.file))
        tensor = self._held[name]
        if info.shape:
            first, last = row_range(rows, info.shape[0])
            tensor = tensor[first:last]
        tensor = tensor.contiguous()
        codes: np.ndarray = tensor.view(torch.uint16).numpy() if info.stored == "BF16" else tensor.numpy()
        if info.stored == "F64":
            with np.errstate(over="ignore"):  # to infinity, which is refused below
                codes = codes.astype(np.float32)
        return self.checked(QTensor(codes, None, info.spec, tuple(codes.shape)), info)

    def as_stored(self, name: str) -> np.ndarray:
        """See SafetensorsCheckpoint.as_stored."""
        import torch

        flat: np.ndarray = self._held[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        return flat

    def release(self, name: str) -> None:
        """Nothing: torch holds the mapping; clean pages of a file go when the system needs them."""

    def files(self) -> list[np.ndarray]:
        return []

    def tokenizer_files(self) -> dict[str, Any]:
        return read_tokenizer_files(self.path)

    def content_files(self) -> Iterable[Path]:
        return [*self._files, *(p for p in (self.path / name for name in SMALL_FILES) if p.is_file())]


class PickledCodec:
    """Asked by `open_checkpoint`, and only where the user allowed it."""

    def claims(self, path: Path) -> bool:
        """Whether a folder's weights are pickles and nothing else."""
        return path.is_dir() and quant_method(path) is None and not any(path.glob("*.safetensors")) and bool(_weights(path))

    def open(self, path: Path) -> PickledCheckpoint:
        config = read_object(path / "config.json")
        held: dict[str, Any] = {}
        homes: dict[str, Path] = {}
        files = _weights(path)
        for file in files:
            for name, tensor in _load(file).items():
                if name in held:
                    raise CheckpointError(f"tensor {shown(name)} also stands in {homes[name].name}", where=str(file))
                held[name], homes[name] = tensor, file
        tensors = {name: _info(name, tensor, homes[name]) for name, tensor in held.items()}
        check_shapes(config, tensors, path)
        return PickledCheckpoint(path, config, tensors, held, files)


def _weights(path: Path) -> list[Path]:
    """The files that hold the model: those of the index, or pytorch_model.bin, or the only one."""
    if (path / INDEX).is_file():
        mapping = read_object(path / INDEX).get("weight_map")
        names = set(mapping.values()) if isinstance(mapping, dict) else set()
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(ENDINGS) or not (path / name).is_file():
                raise CheckpointError(f"names {shown(name)}, which is no file of this folder", where=str(path / INDEX), remedy="fetch the model again")
        return sorted(path / name for name in names)
    if (path / "pytorch_model.bin").is_file():
        return [path / "pytorch_model.bin"]
    found = sorted(p for p in path.iterdir() if p.suffix in ENDINGS and p.name != "training_args.bin")
    return found if len(found) == 1 else []


def _load(file: Path) -> dict[str, Any]:
    """{name: tensor} of one file, mapped. Raises CheckpointError for whatever else it holds."""
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingExtraError("pickled weights are read by torch, which is not installed", where=str(file), remedy="pip install octavo[torch]") from None
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, EOFError, AssertionError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"is not read by torch's weights_only loader: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}",
                              where=str(file), remedy="take the safetensors files of the model") from None
    inner = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(inner, dict) or not inner or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in inner.items()):
        raise CheckpointError("holds something else than named tensors", where=str(file), remedy="take the safetensors files of the model")
    for name, tensor in inner.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or (0 in tensor.stride() and tensor.numel() > 1):
            raise CheckpointError(f"tensor {shown(name)} is not plainly stored", where=str(file), remedy="take the safetensors files of the model")
    return inner


def _info(name: str, tensor: Any, file: Path) -> TensorInfo:
    stored = TYPES.get(str(tensor.dtype))
    if stored is None:
        raise CheckpointError(f"tensor {shown(name)} is of type {tensor.dtype}, which is not read", where=str(file),
                              remedy="take the safetensors files of the model")
    return TensorInfo(name, tuple(tensor.shape), SPECS[stored][0] if stored in UNDERSTOOD else None, tensor.numel() * tensor.element_size(), file, stored)

