"""What a checkpoint looks like to the rest of the house, whatever is on disk.

Names, shapes and conventions are those of Hugging Face's model files (`model.layers.0.self_attn.q_proj.weight`, rope pairs split in
halves): a codec whose format differs (GGUF) translates. Reading one tensor never allocates more than that tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..qtensor import QTensor
from ..schemes import TensorSpec


@dataclass(frozen=True)
class TensorInfo:
    name: str               # Hugging Face name
    shape: tuple[int, ...]
    spec: TensorSpec | None  # what is stored; None for what is no weight (integer buffers): listed, but it cannot be read
    nbytes: int             # bytes on disk
    file: Path
    stored: str             # the file's own name of the type, e.g. "Q4_K", "BF16"


class Checkpoint(Protocol):
    """An opened checkpoint. `tensors` is known without reading tensor data."""

    path: Path
    codec: str                           # name of the codec file
    config: dict[str, Any]               # a Hugging Face config.json, whatever the format
    tensors: Mapping[str, TensorInfo]

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
