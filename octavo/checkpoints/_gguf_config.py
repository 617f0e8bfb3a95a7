"""A Hugging Face config.json out of GGUF metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import CheckpointError, ModelError
from ._gguf_names import ARCHITECTURES
from ._gguf_reader import GgufFile
from ._gguf_tokenizer import end_tokens
from ._json import shown

CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
           "smollm3": "SmolLM3ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}


class Metadata:
    """Typed access to the metadata; `key` without the architecture's prefix."""

    def __init__(self, source: GgufFile) -> None:
        self.path, self._values = source.file.path, source.metadata
        architecture = self._values.get("general.architecture")
        if not isinstance(architecture, str):
            raise CheckpointError("names no architecture (general.architecture)", where=str(self.path), remedy="fetch it again")
        self.architecture = architecture

    def number(self, key: str, kind: type, default: Any = None, *, required: bool = False) -> Any:
        """An int or a float; arrays of equal entries count as one number."""
        name = f"{self.architecture}.{key}"
        value = self._values.get(name)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if value is None:
            if required:
                raise CheckpointError(f"lacks metadata {name}", where=str(self.path), remedy="convert it with a current llama.cpp")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (kind is int and (type(value) is not int or not 0 <= value < 1 << 31)):
            raise ModelError(f"metadata {name} is {shown(value)}, not {'a whole number' if kind is int else 'a number'}", where=str(self.path))
        if kind is int:
            return value
        # A float32 such as 9.9999997e-06 was 1e-05 when it was written: its shortest spelling.
        with np.errstate(over="ignore"):  # to infinity, which the model layer refuses by name
            return float(str(np.float32(value)))

    def text(self, key: str) -> str | None:
        value = self._values.get(f"{self.architecture}.{key}")
        return value if isinstance(value, str) else None


def config_of(source: GgufFile) -> dict[str, Any]:
    """The config of the model. Unknown architectures give their name only: the model layer refuses them by it."""
    data = Metadata(source)
    if data.architecture not in ARCHITECTURES:
        return {"model_type": data.architecture}
    if data.number("expert_count", int, 0):
        raise ModelError(f"architecture {data.architecture!r} with experts (mixture of experts) is not read", where=str(data.path),
                         remedy="choose a dense model")
    heads = data.number("attention.head_count", int, required=True)
    hidden = data.number("embedding_length", int, required=True)
    if not heads or not hidden:
        raise CheckpointError("claims a model without heads or width", where=str(data.path), remedy="fetch it again")
    rotary = data.number("rope.dimension_count", int, 0)
    head = data.number("attention.key_length", int, rotary or hidden // heads)
    embedding, tokens = source.tensors.get("token_embd.weight"), source.metadata.get("tokenizer.ggml.tokens")
    vocabulary = embedding.shape[0] if embedding else data.number("vocab_size", int, len(tokens) if isinstance(tokens, list) else None)
    model_type = ARCHITECTURES[data.architecture]
    if model_type == "llama" and data.number("attention.sliding_window", int, 0):
        model_type = "mistral"
    bos = source.metadata.get("tokenizer.ggml.bos_token_id")
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [CLASSES[model_type]],
        "hidden_size": hidden,
        "intermediate_size": data.number("feed_forward_length", int, required=True),
        "num_hidden_layers": data.number("block_count", int, required=True),
        "num_attention_heads": heads,
        "num_key_value_heads": data.number("attention.head_count_kv", int, heads),
        "head_dim": head,
        "rms_norm_eps": data.number("attention.layer_norm_rms_epsilon", float, required=True),
        "max_position_embeddings": data.number("context_length", int, required=True),
        "rope_theta": data.number("rope.freq_base", float, 10000.0),
        "vocab_size": vocabulary,
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in source.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in source.tensors,
        "bos_token_id": bos if isinstance(bos, int) else None,
        "eos_token_id": end_tokens(source.metadata),
    }
    if rotary and rotary < head:
        config["partial_rotary_factor"] = rotary / head
    if (scaling := _rope_scaling(data, source, config)) is not None:
        config["rope_scaling"] = scaling
    if model_type in _SPECIAL:
        _SPECIAL[model_type](data, config)
    return config


def _mistral(data: Metadata, config: dict[str, Any]) -> None:
    config["sliding_window"] = data.number("attention.sliding_window", int)


def _smollm3(data: Metadata, config: dict[str, Any]) -> None:
    """Every fourth layer goes without rotary embedding; the interval is no metadata, llama.cpp fixes it as well."""
    config["no_rope_layer_interval"] = 4
    config["no_rope_layers"] = [int((layer + 1) % 4 != 0) for layer in range(min(config["num_hidden_layers"], 1 << 12))]


def _gemma3(data: Metadata, config: dict[str, Any]) -> None:
    """Five layers with a window, one without. The 27B model scales queries by width over heads, the others by the head's width."""
    layers, pattern = config["num_hidden_layers"], data.number("attention.sliding_window_pattern", int, 6) or 6
    config.update(
        hidden_activation="gelu_pytorch_tanh",
        sliding_window=data.number("attention.sliding_window", int, required=True),
        layer_types=["full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(min(layers, 1 << 12))],
        rope_local_base_freq=data.number("rope.freq_base_swa", float, 10000.0),
        rope_theta=data.number("rope.freq_base", float, 1000000.0),
        query_pre_attn_scalar=config["hidden_size"] // config["num_attention_heads"] if layers == 62 else config["head_dim"],
        attn_logit_softcapping=data.number("attn_logit_softcapping", float),
        final_logit_softcapping=data.number("final_logit_softcapping", float),
    )
    del config["hidden_act"]


_SPECIAL: dict[str, Callable[[Metadata, dict[str, Any]], None]] = {"mistral": _mistral, "smollm3": _smollm3, "gemma3_text": _gemma3}


def _rope_scaling(data: Metadata, source: GgufFile, config: dict[str, Any]) -> dict[str, Any] | None:
    kind, factor = data.text("rope.scaling.type"), data.number("rope.scaling.factor", float)
    original = data.number("rope.scaling.original_context_length", int)
    if "rope_freqs.weight" in source.tensors:
        return _from_factors(_factors(source), config)
    if kind in (None, "none") or factor is None:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original or config["max_position_embeddings"]}
        attention = data.number("rope.scaling.attn_factor", float)
        return scaling if attention is None else {**scaling, "attention_factor": attention}
    raise ModelError(f"rope scaling {shown(kind)} is not read", where=str(data.path), remedy="known: linear, yarn, llama3")


def _factors(source: GgufFile) -> np.ndarray:
    tensor = source.tensors["rope_freqs.weight"]
    if tensor.stored != "F32" or len(tensor.shape) != 1:
        raise CheckpointError("tensor 'rope_freqs.weight' is no vector of F32", where=str(source.file.path))
    return source.file.array("<f4", tensor.shape[0], tensor.start)


def llama3_factors(theta: float, rotary: int, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """What each frequency is divided by under Llama 3's scaling, [rotary / 2] (Hugging Face's rope_type "llama3")."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, rotary, 2) / rotary)
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _from_factors(factors: np.ndarray, config: dict[str, Any]) -> dict[str, Any]:
    """Names Llama 3's rule where it gives these very factors, else lists them (longrope with one list divides in the same way)."""
    rotary = int(config["head_dim"] * config.get("partial_rotary_factor", 1.0))
    if len(factors) == rotary // 2:
        rule = {"factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        if np.allclose(llama3_factors(config["rope_theta"], rotary, *rule.values()), factors, rtol=1e-4):  # type: ignore[arg-type]
            return {"rope_type": "llama3", **rule}
    plain = [float(f) for f in factors]
    return {"rope_type": "longrope", "short_factor": plain, "long_factor": plain, "factor": 1.0, "attention_factor": 1.0,
            "original_max_position_embeddings": config["max_position_embeddings"]}
