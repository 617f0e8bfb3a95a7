"""What a checkpoint looks like to the rest of the house, whatever is on disk.

Names, shapes and conventions are those of Hugging Face's model files (`model.layers.0.self_attn.q_proj.weight`, rope pairs split in
halves): a codec whose format differs (GGUF) translates. Reading one tensor never allocates more than that tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..qtensor import QTensor
from ..schemes import TensorSpec


@dataclass(frozen=True)
class TensorInfo:
    name: str               # Hugging Face name
    shape: tuple[int, ...]
    spec: TensorSpec | None  # what is stored; None for what is no weight (integer buffers): listed, but it cannot be read
    nbytes: int             # bytes on disk
    file: Path
    stored: str             # the file's own name of the type, e.g. "Q4_K", "BF16"; of a quantized weight the format's, e.g. "gptq 4 bits"
    activation: TensorSpec | None = None  # what the files say its inputs are quantized to; None: nothing, so 16 bits
    parts: tuple[str, ...] = ()           # the stored tensors that a quantized weight is made of, where they have other names


class Checkpoint(Protocol):
    """An opened checkpoint. `tensors` is known without reading tensor data."""

    path: Path
    codec: str                           # name of the codec file
    config: dict[str, Any]               # a Hugging Face config.json, whatever the format
    tensors: Mapping[str, TensorInfo]
    cache: TensorSpec | None             # what the files say the KV cache is quantized to; None: nothing, so 16 bits
    notes: Sequence[str]                 # what the files hold that is read and not used, a sentence each

    def read(self, name: str, rows: slice | None = None) -> QTensor:
        """The tensor as stored, or only these rows of its first dimension. Unquantized numbers are views of the mapped file.

        Raises CheckpointError naming file and tensor: no such tensor, or one that holds NaN or infinity.
        """

    def tokenizer_files(self) -> dict[str, Any]:
        """{"tokenizer": a `tokenizers.Tokenizer`, "config": tokenizer_config.json as a dict incl. chat_template, "generation": dict}"""

    def content_key(self, cache_dir: Path | None = None) -> str:
        """Hex digest that changes when any byte that matters changes. Remembered in `cache_dir` (default: the settings' cache)."""

    def release(self, name: str) -> None:
        """Give the pages of this tensor back to the system after its last read (mapped files)."""


class Codec(Protocol):
    def claims(self, path: Path) -> bool: ...
    def open(self, path: Path) -> Checkpoint: ...


@dataclass(frozen=True)
class Part:
    """A tensor to be written: the file's name of its type ("I32", "F8_E4M3"; a block type in GGUF), its shape."""

    dtype: str
    shape: tuple[int, ...]


class Writer(Protocol):
    """The writing half of a codec: how a target format holds quantized weights [out, in]. A codec that can write has `writer(options)`.

    All shapes are known before the first number is (`parts`), so a file is laid out first and filled afterwards, a few rows at a time; filling
    the same rows twice gives the same bytes.
    """

    def why_not(self, spec: TensorSpec, shape: tuple[int, int]) -> str | None:
        """None when the format holds the numbers of such a tensor exactly, else the reason why not."""

    def nearest(self, spec: TensorSpec, shape: tuple[int, int]) -> TensorSpec:
        """The precision that numbers are rounded to where `spec` cannot be held and the user agreed to that."""

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, int]) -> dict[str, Part]:
        """The stored tensors of the weight `name` ("....weight"), by their full names."""

    def fill(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        """Puts `tensor`, the rows from `first` on, into `out`: an array of each part's whole shape, of its type's codes (bfloat16 and small
        floats as unsigned integers). `first` is a multiple of 512 (rows of a block, of a word); only the last piece has other than a multiple of 512 rows."""

    def config(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        """What goes into config.json, by key (`quantization_config` and the like): `weights` are quantized, `kept` (2-D) are not."""
