"""What the folder formats share: the small files beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ._json import read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
LARGEST_TEMPLATE = 4 << 20


def quant_method(path: Path) -> str | None:
    """The method that config.json says the weights are quantized with; None for unquantized ones."""
    config = read_object(path / "config.json", required=False)
    for part in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(part, dict) and isinstance(part.get("quantization_config"), dict):
            return str(part["quantization_config"].get("quant_method") or "unnamed")
    return None


def load_tokenizer(path: Path) -> Tokenizer:
    """tokenizer.json of a folder. Raises CheckpointError where it is missing or no tokenizer."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    if not file.is_file():
        remedy = "the folder has only the older tokenizer.model; save it once with transformers to get a tokenizer.json" if (
            path / "tokenizer.model").is_file() else "fetch the model again, with its tokenizer"
        raise CheckpointError("is missing", where=str(file), remedy=remedy)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        raise CheckpointError(f"is no tokenizer: {str(error)[:160]}", where=str(file), remedy="fetch it again") from None


def read_tokenizer_files(path: Path) -> dict[str, Any]:
    """{"tokenizer", "config" with its chat_template, "generation"} of a folder; see Checkpoint.tokenizer_files."""
    return {"tokenizer": load_tokenizer(path), **read_tokenizer_settings(path)}


def read_tokenizer_settings(path: Path) -> dict[str, Any]:
    """The same without the tokenizer, which takes longest."""
    config = read_object(path / "tokenizer_config.json", required=False)
    template = read_chat_template(path)
    if template is not None:
        config["chat_template"] = template
    return {"config": config, "generation": read_object(path / "generation_config.json", required=False)}


def read_chat_template(path: Path) -> str | dict[str, str] | None:
    """The template kept in a file of its own, which wins over the one in tokenizer_config.json; with further named ones as a dict."""
    main = path / "chat_template.jinja"
    template = _text(main) if main.is_file() else read_object(path / "chat_template.json", required=False).get("chat_template")
    named = {file.stem: _text(file) for file in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    return {"default": template, **named} if named and template is not None else template


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_TEMPLATE:
            raise CheckpointError(f"is larger than {LARGEST_TEMPLATE >> 20} MiB", where=str(path))
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot be read: {error}", where=str(path)) from None
