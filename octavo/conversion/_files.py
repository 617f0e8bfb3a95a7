"""The small files: which of the source's travel along, and the ones that are made."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint
from ..errors import CheckpointError

# Text, tokenizers, templates, licences: by ending, or by name where there is none. Weights, pickles and archives are not among them.
ENDINGS = {".json", ".jsonl", ".jinja", ".txt", ".md", ".model", ".tiktoken", ".vocab", ".bpe", ".merges", ".yaml", ".yml", ".toml", ".spm", ".rst", ".html"}
BARE = ("LICENSE", "LICENCE", "NOTICE", "README", "COPYING", "COPYRIGHT", "USE_POLICY", "MODEL_CARD", "ACKNOWLEDG", "AUTHORS")
CODE = ".py"
# What describes the old weights, not the model.
OLD = {"config.json", "hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json", "manifest.json",
       "octavo-manifest.json", "octavo-receipt.json", "quant_log.csv", "recipe.yaml"}
LARGEST = 256 << 20  # bytes of one small file: the largest tokenizers have some 30 MB


def travelling(source: Path, *, code: bool) -> list[Path]:
    """The files of a model's folder that go along byte for byte, those of additional_chat_templates among them.

    A link that leads out of the folder is followed only into the hub's cache, where snapshots are made of links.
    Raises CheckpointError for one that leads elsewhere.
    """
    if not source.is_dir():
        return []
    found = []
    for path in sorted([*source.iterdir(), *source.glob("additional_chat_templates/*.jinja")]):
        wanted = path.suffix in ENDINGS or (not path.suffix and path.name.upper().startswith(BARE)) or (code and path.suffix == CODE)
        if not wanted or path.name in OLD or path.name.startswith(".") or path.name.endswith(".index.json") or not path.is_file():
            continue
        if path.stat().st_size > LARGEST:
            continue
        real, homes = path.resolve(), (source.resolve(), source.resolve().parent.parent / "blobs")
        if not any(real.is_relative_to(home) for home in homes):
            raise CheckpointError(f"is a link to {real}, outside the model's folder", where=str(path), remedy="replace it by the file itself, or remove it")
        found.append(path)
    return found


def copied(source: Path, files: Iterable[Path]) -> dict[str, bytes]:
    """{name below the folder: contents}. Raises CheckpointError."""
    try:
        return {str(path.relative_to(source)): path.read_bytes() for path in files}
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(error.filename or source)) from None


def made_from_metadata(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Tokenizer, its settings with the chat template, and generation settings of a checkpoint that is a single file."""
    files = checkpoint.tokenizer_files()
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **dict(files.get("config") or {})}
    if isinstance(templates := settings.get("chat_template"), dict):
        settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    made = {"tokenizer_config.json": as_json(settings), "generation_config.json": as_json(files.get("generation") or {})}
    if (tokenizer := files.get("tokenizer")) is not None:
        made["tokenizer.json"] = tokenizer.to_str(pretty=True).encode()
    return made


def as_json(content: Any) -> bytes:
    """Indented as Hugging Face's files are, with a last newline."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
