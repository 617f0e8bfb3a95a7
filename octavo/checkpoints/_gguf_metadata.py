"""GGUF metadata out of a Hugging Face config.json: the inverse of _gguf_config.py.

Source: llama.cpp's keys (gguf-py, constants.py) and what its loader asks of each architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import UsageError
from ._gguf_config import llama3_factors
from ._gguf_names import ARCHITECTURES

FAMILIES = {**{model_type: architecture for architecture, model_type in ARCHITECTURES.items()}, "mistral": "llama"}


def architecture_of(config: Mapping[str, Any]) -> str:
    """GGUF's name of the architecture. Raises UsageError for one that is not written."""
    found = FAMILIES.get(str(config.get("model_type")))
    if found is None:
        raise UsageError(f"models of type {config.get('model_type')!r} are not written as GGUF", remedy=f"known: {', '.join(sorted(FAMILIES))}")
    return found


def rope_of(config: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """(base frequency, scaling as a dict, empty for none), from either of Hugging Face's spellings."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope.get("full_attention"), dict):
        rope = rope["full_attention"]
    theta = config.get("rope_theta") or rope.get("rope_theta") or 10000.0
    kind = rope.get("rope_type", rope.get("type", "default"))
    return float(theta), {} if kind in ("default", "none", None) else {**rope, "rope_type": kind}


def head_width(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rotary_width(config: Mapping[str, Any]) -> int:
    return int(head_width(config) * float(config.get("partial_rotary_factor") or 1.0))


def metadata_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture's own keys. Raises UsageError for a kind of rope scaling that llama.cpp has not."""
    architecture, head = architecture_of(config), head_width(config)
    theta, scaling = rope_of(config)
    heads = int(config["num_attention_heads"])
    pairs: dict[str, Any] = {
        "block_count": int(config["num_hidden_layers"]),
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": int(config["hidden_size"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": rotary_width(config),
        "rope.freq_base": theta,
        "vocab_size": int(config["vocab_size"]),
    }
    window = config.get("sliding_window")
    if window and config.get("model_type") in ("mistral", "gemma3_text"):
        pairs["attention.sliding_window"] = int(window)
    if architecture == "gemma3":
        pairs.update(_gemma3(config))
    kind = scaling.get("rope_type")
    if kind in ("linear", "yarn"):
        pairs["rope.scaling.type"] = kind
        pairs["rope.scaling.factor"] = float(scaling["factor"])
        if kind == "yarn":
            pairs["rope.scaling.original_context_length"] = int(scaling.get("original_max_position_embeddings") or config["max_position_embeddings"])
            if scaling.get("attention_factor") is not None:
                pairs["rope.scaling.attn_factor"] = float(scaling["attention_factor"])
    elif kind is not None and rope_factors(config) is None:
        raise UsageError(f"rope scaling {kind!r} is not written as GGUF", remedy="known: linear, yarn, llama3, and longrope with one list of factors")
    return {f"{architecture}.{key}": value for key, value in pairs.items()}


def _gemma3(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    local = config.get("rope_local_base_freq") or (rope.get("sliding_attention") or {}).get("rope_theta") or 10000.0
    pairs: dict[str, Any] = {"rope.freq_base_swa": float(local)}
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and "full_attention" in kinds:
        pairs["attention.sliding_window_pattern"] = kinds.index("full_attention") + 1
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            pairs[key] = float(config[key])
    return pairs


def rope_factors(config: Mapping[str, Any]) -> np.ndarray | None:
    """rope_freqs.weight, float32 [rotary / 2]: what each frequency is divided by; None where nothing is."""
    theta, scaling = rope_of(config)
    kind = scaling.get("rope_type")
    if kind == "llama3":
        rule = (float(scaling["factor"]), float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"]),
                int(scaling["original_max_position_embeddings"]))
        return llama3_factors(theta, rotary_width(config), *rule).astype(np.float32)
    if kind == "longrope" and scaling.get("short_factor") == scaling.get("long_factor") and float(scaling.get("attention_factor") or 0) == 1.0:
        return np.array(scaling["long_factor"], np.float32)
    return None
