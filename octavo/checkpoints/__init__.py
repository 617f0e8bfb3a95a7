"""Model files: one codec per on-disk format, found by `open_checkpoint`.

A codec turns files into (config, named tensors, tokenizer) under Hugging Face's names and hands out QTensors; it knows no kernel. Each
file ends in `CODEC`. Weights that were quantized by another tool are claimed by their `quant_method`, which is the codec's file name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError, UsageError
from ..registry import discover
from ._folder import quant_method
from ._hub import fetch, looks_like_id
from .base import Checkpoint, Codec, FileWriter, InexactError, Layout, Part, TensorInfo, Writer, WriterOptions

__all__ = ["Checkpoint", "Codec", "FileWriter", "InexactError", "Layout", "Part", "TensorInfo", "Writer", "WriterOptions", "codecs", "open_checkpoint",
           "writers"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def codecs() -> dict[str, Codec]:
    """Every codec by name."""
    return discover(__name__, "CODEC")


def writers() -> dict[str, Callable[[WriterOptions], Writer]]:
    """What makes the Writer of each format that can be written, by the codec's name."""
    return {name: codec.writer for name, codec in codecs().items() if hasattr(codec, "writer")}


def open_checkpoint(path_or_id: str | Path, *, revision: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """A folder, a .gguf file, or a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct` (downloaded once, then taken from the hub's cache).

    allow_pickle: read pickled weights (.bin, .pt), by torch's weights_only loader, where a folder has no others.

    Raises UsageError for what is none of these, CheckpointError for files that are broken, incomplete or of a format that is not read.
    """
    path = Path(path_or_id).expanduser()
    if not path.exists():
        if not looks_like_id(str(path_or_id)):
            raise UsageError("no such file or folder", where=str(path_or_id), remedy="name a model folder, a .gguf file, or a hub id (owner/name)")
        path = fetch(str(path_or_id), revision)
    return _codec_of(path, allow_pickle).open(path)


def _codec_of(path: Path, allow_pickle: bool) -> Codec:
    known = codecs()
    if allow_pickle:
        from ._pickled import PickledCodec  # no file of the registry: nothing that a checkpoint says may lead to it

        if (pickled := PickledCodec()).claims(path):
            return pickled
    if path.is_dir() and (method := quant_method(path)) is not None:
        codec = known.get(method.replace("-", "_"))
        if codec is None:
            raise CheckpointError(f"the weights are quantized with {method!r}, a format that is not read", where=str(path),
                                  remedy=f"take the unquantized model, which Octavo quantizes as it loads; read are: {', '.join(sorted(known))}")
        if any(path.glob("*.safetensors")) or not any(p.name.endswith(PICKLES) for p in path.iterdir()):
            return codec
    else:
        for codec in known.values():
            if codec.claims(path):
                return codec
    names = [path.name] if path.is_file() else sorted(p.name for p in path.iterdir())
    pickles = [n for n in names if n.endswith(PICKLES)]
    if pickles:
        raise CheckpointError(f"holds pickled weights ({pickles[0]}), which can run code when read", where=str(path),
                              remedy="take the safetensors files of the model, or convert it once: octavo convert ... --to safetensors --allow-pickle")
    ggufs = [n for n in names if n.endswith(".gguf")]
    if ggufs and path.is_dir():
        raise CheckpointError(f"holds {len(ggufs)} GGUF files", where=str(path), remedy=f"name one of them, such as {path / ggufs[0]}")
    raise CheckpointError("holds no weights that can be read", where=str(path), remedy="needed: *.safetensors with config.json, or a .gguf file")
