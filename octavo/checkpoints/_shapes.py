"""Do the tensors have the shapes that config.json says? Asked once, before anything is allocated by what a config claims."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ._json import shown
from .base import TensorInfo

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")
# Name after `layers.N.` (or the whole name) -> the sizes of its shape, as keys of `_sizes`.
_LAYER_SHAPES = {
    "self_attn.q_proj.weight": ("q", "hidden"), "self_attn.k_proj.weight": ("kv", "hidden"), "self_attn.v_proj.weight": ("kv", "hidden"),
    "self_attn.o_proj.weight": ("hidden", "q"), "self_attn.q_proj.bias": ("q",), "self_attn.k_proj.bias": ("kv",),
    "self_attn.v_proj.bias": ("kv",), "self_attn.q_norm.weight": ("head",), "self_attn.k_norm.weight": ("head",),
    "mlp.gate_proj.weight": ("inner", "hidden"), "mlp.up_proj.weight": ("inner", "hidden"), "mlp.down_proj.weight": ("hidden", "inner"),
    "input_layernorm.weight": ("hidden",), "post_attention_layernorm.weight": ("hidden",),
    "pre_feedforward_layernorm.weight": ("hidden",), "post_feedforward_layernorm.weight": ("hidden",),
}
_SHAPES = {"model.embed_tokens.weight": ("vocab", "hidden"), "lm_head.weight": ("vocab", "hidden"), "model.norm.weight": ("hidden",)}
DENSE = {"llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma3_text"}


def check_shapes(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], path: Path) -> None:
    """Raises CheckpointError naming file and tensor. Families whose shapes follow other rules are left to their model file."""
    if not isinstance(kind := config.get("model_type"), str) or kind not in DENSE:
        return
    sizes = _sizes(config, path)
    layers = config.get("num_hidden_layers")
    held = {int(m[1]) for name in tensors if (m := _LAYER.search(name)) and len(m[1]) < 7}
    if isinstance(layers, int) and held and layers > max(held) + 1:
        raise CheckpointError(f"num_hidden_layers is {layers}, the weights have {max(held) + 1} layers", where=f"{path}: config",
                              remedy="the checkpoint is incomplete: fetch it again")
    for name, info in tensors.items():
        match = _LAYER.search(name)
        keys = _LAYER_SHAPES.get(match[2]) if match else _SHAPES.get(name)
        if keys is None or any(sizes[key] is None for key in keys):
            continue
        expected = tuple(sizes[key] for key in keys)
        if info.shape != expected:
            raise CheckpointError(f"tensor {shown(name)} has shape {list(info.shape)}, the config asks for {list(expected)}", where=str(info.file),
                                  remedy="weights and config are not of the same model")


def _sizes(config: Mapping[str, Any], path: Path) -> dict[str, int | None]:
    def number(key: str) -> int | None:
        value = config.get(key)
        if value is not None and (type(value) is not int or not 0 < value < 1 << 31):
            raise CheckpointError(f"{key} is {shown(value)}, not a whole number above 0", where=f"{path}: config")
        return value

    hidden, heads, head = number("hidden_size"), number("num_attention_heads"), number("head_dim")
    kv_heads = number("num_key_value_heads") or heads
    if head is None and hidden is not None and heads is not None:
        head = hidden // heads
    number("num_hidden_layers")
    return {"hidden": hidden, "inner": number("intermediate_size"), "vocab": number("vocab_size"), "head": head,
            "q": heads * head if heads and head else None, "kv": kv_heads * head if kv_heads and head else None}
