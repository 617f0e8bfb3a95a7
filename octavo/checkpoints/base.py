"""What a checkpoint looks like to the rest of the house, whatever is on disk.

Names, shapes and conventions are those of Hugging Face's model files (`model.layers.0.self_attn.q_proj.weight`, rope pairs split in
halves): a codec whose format differs (GGUF) translates. Reading one tensor never allocates more than that tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..errors import OctavoError
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


class InexactError(OctavoError):
    """Numbers that a format cannot hold as they are; the message says why. The converter adds which tensor."""

    exit_code = 2


@dataclass(frozen=True)
class Part:
    """A tensor to be written: the file's name of its type ("I32", "F8_E4M3"; a block type in GGUF), its shape.

    held   (NumPy type, shape) of the array that `fill` gets, where they do not follow from a safetensors type and the shape: blocks of bytes
    """

    dtype: str
    shape: tuple[int, ...]
    held: tuple[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class WriterOptions:
    """What a Writer knows before the first tensor.

    variant        what stands after the colon of `--to` (GGUF's type), or ""
    config         config.json of the model, without a quantization_config
    specs          weight -> its precision as it comes: what is stored, or what `--quantization` asked for; unquantized where nothing says more
    activations    weight -> what its inputs are quantized to; a weight that is missing has 16-bit inputs
    fresh          the numbers were made for this target: what it rounds of their scales was asked for
    input_scales   weight -> the stored scale of its inputs (static activations), float32 [1] or []; only where the source has one
    cache          what the KV cache is quantized to
    cache_scales   "model.layers.0.self_attn.k" (and ".v") -> its scale, float32
    """

    variant: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    specs: Mapping[str, TensorSpec] = field(default_factory=dict)
    activations: Mapping[str, TensorSpec] = field(default_factory=dict)
    input_scales: Mapping[str, np.ndarray] = field(default_factory=dict)
    cache: TensorSpec | None = None
    cache_scales: Mapping[str, np.ndarray] = field(default_factory=dict)
    fresh: bool = False


class Writer(Protocol):
    """The writing half of a codec: how a target format holds quantized weights [out, in]. Inherit from it; a codec that can write has
    `writer(options: WriterOptions) -> Writer`, which raises UsageError for a variant that it does not know.

    All shapes are known before the first number is (`parts`), so a file is laid out first and filled afterwards, a few rows at a time; filling
    the same rows twice gives the same bytes. Several threads call one Writer at once, each with another weight; the
    pieces of a weight come in order, from one of them.

    Unquantized tensors, and weights that stay unquantized (lm_head, embeddings, norms), are the converter's business, except for a FileWriter's.
    """

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        """None when the format holds the numbers of such a tensor exactly, as far as spec and shape tell; else the reason why not."""

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        """The precision that numbers are rounded to where `spec` cannot be held and the user agreed to that; of an unquantized spec, the format's
        natural choice. An unquantized answer (fp32) means that `fill` takes such numbers and rounds them itself."""

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Part]:
        """The stored tensors of the weight `name` ("....weight"), by their full names."""

    def fill(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        """Puts `tensor`, the rows from `first` on, into `out`: an array of each part's whole shape, zeros at first, of its type's codes (bfloat16
        and small floats as unsigned integers). Pieces begin at multiples of 512 rows (and of a block's rows); all but the last have as many.

        Raises InexactError for numbers that the format cannot hold as they are and whose spec did not tell: a scale that is no float16, zero
        points that are not whole, offsets, an order, factors. The first piece is also tried before anything is written, on arrays of its own.
        """

    def config(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        """What goes into config.json, by key (`quantization_config` and the like): `weights` are quantized, `kept` (2-D, named "....weight") are not."""

    def cache_why_not(self, cache: TensorSpec, scales: bool) -> str | None:
        """None when the format says that the key-value cache has this precision; else the reason why not. scales: it has stored ones."""
        return "it has no place for the precision of a key-value cache"

    def files(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        """Further JSON files beside config.json, by name (ModelOpt's hf_quant_config.json)."""
        return {}

    def extras(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, tuple[Part, np.ndarray]]:
        """Small tensors of no weight, by name (scales of the cache; GGUF's rope_freqs.weight)."""
        return {}


@dataclass(frozen=True)
class Layout:
    """A file to be written.

    name     of the file
    head     the bytes that it begins with
    places   part -> (its first byte in the file, the part)
    size     bytes of the whole file
    """

    name: str
    head: bytes
    places: Mapping[str, tuple[int, Part]]
    size: int


@runtime_checkable
class FileWriter(Writer, Protocol):
    """The Writer of a format that is one file with everything in it (GGUF). Every tensor of the model goes through `why_not`, `nearest`, `parts` and
    `fill`, unquantized ones and vectors too: names, order of rows and precision of each are its own choice. `config` is not asked."""

    def layout(self, file_name: str, parts: Mapping[str, Part], tokenizer: Mapping[str, Any]) -> Layout:
        """The file that holds `parts`; `tokenizer` is what Checkpoint.tokenizer_files gave, or {"gguf": metadata as stored} of another
        GGUF file. Made before anything is filled."""
