"""What the folder formats share: the small files beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ._json import read_object, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
               "hf_quant_config.json")
MODELOPT_FILE = "hf_quant_config.json"
LARGEST_TEMPLATE = 4 << 20
# Configs of tools that did not yet write into config.json: file, method, and what their keys are called now.
OLDER: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("quantize_config.json", "gptq", {}), ("quant_config.json", "awq", {"w_bit": "bits", "q_group_size": "group_size"}),
    (MODELOPT_FILE, "modelopt", {}))
_METHODS = {"sparseml": "compressed-tensors", "compressed_tensors": "compressed-tensors"}  # older names


def find_quantization(path: Path) -> dict[str, Any] | None:
    """The quantization_config of a folder, with its quant_method, wherever it stands; None for unquantized weights."""
    config = read_object(path / "config.json", required=False)
    for part in (config, config.get("text_config"), config.get("llm_config")):
        for key in ("quantization_config", "compression_config"):  # the second is what compressed-tensors wrote in 2024
            if isinstance(part, dict) and isinstance(found := part.get(key), dict):
                found = _unwrapped(found)
                return {**found, "quant_method": _METHODS.get(method := str(found.get("quant_method") or _unnamed(found)), method)}
    for name, method, keys in OLDER:
        if (path / name).is_file():
            found = read_object(path / name)
            return {**{keys.get(key, key): value for key, value in found.items()}, "quant_method": str(found.get("quant_method") or method)}
    return None


def _unwrapped(quantization: dict[str, Any]) -> dict[str, Any]:
    """Older compressed-tensors files have the config of quantization one level deeper, beside that of sparsity."""
    inner = quantization.get("quantization_config")
    return {**{key: value for key, value in quantization.items() if key != "quantization_config"}, **inner} if isinstance(inner, dict) else quantization


def _unnamed(quantization: dict[str, Any]) -> str:
    """Configs without a method: bitsandbytes' older ones have its switches, ModelOpt's its algorithm, FastDeploy's a scheme under this key."""
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        return "bitsandbytes"
    scheme = quantization.get("quantization")
    if "quant_algo" in quantization or (isinstance(scheme, dict) and "quant_algo" in scheme):
        return "modelopt"
    if "config_groups" in quantization or "sparsity_config" in quantization:
        return "compressed-tensors"
    return "fastdeploy" if "quantization" in quantization else "unnamed"


def quant_method(path: Path) -> str | None:
    """The method that the folder's config says the weights are quantized with ("intel/" before AutoRound's left out); None for unquantized ones."""
    found = find_quantization(path)
    return None if found is None else found["quant_method"].rpartition("/")[2]


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
        raise CheckpointError(f"is no tokenizer: {shown(str(error)[:100])}", where=str(file), remedy="fetch it again") from None


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
