"""GGUF's tensor names and conventions, per architecture, against those of Hugging Face's model files.

Two conventions differ besides the names:
- llama.cpp rotates neighbouring pairs for some architectures, so its converter interleaves the two halves of each head in the rows of q and
  k. `row_order` undoes that.
- Gemma's norms multiply by 1 + w. GGUF stores 1 + w; Hugging Face stores w.
"""

from __future__ import annotations

import re

import numpy as np

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "smollm3": "smollm3", "gemma3": "gemma3_text"}  # -> model_type
INTERLEAVED = {"llama", "smollm3"}
NORMS_PLUS_ONE = {"gemma3"}

_WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight",
          "rope_freqs.weight": "rope_freqs.weight"}
_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER = {**_LAYER, "ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm"}
_HUGGING_FACE_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.([a-z_.]+)\.(weight|bias)")
_BLOCK = re.compile(r"blk\.(\d{1,6})\.([a-z_]+)\.(weight|bias)")


def hugging_face_name(architecture: str, name: str) -> str | None:
    """The Hugging Face name of a tensor; None where this architecture has no such tensor. Unknown architectures keep GGUF's names."""
    if architecture not in ARCHITECTURES:
        return name
    if name in _WHOLE:
        return _WHOLE[name]
    match = _BLOCK.fullmatch(name)
    part = (_GEMMA_LAYER if architecture == "gemma3" else _LAYER).get(match[2]) if match else None
    return f"model.layers.{int(match[1])}.{part}.{match[3]}" if match and part else None


def gguf_name(architecture: str, name: str) -> str | None:
    """The inverse of `hugging_face_name` for a known architecture; None where GGUF has no such tensor."""
    whole = {theirs: ours for ours, theirs in _WHOLE.items()}
    match = _HUGGING_FACE_LAYER.fullmatch(name)
    if match is None:
        return whole.get(name)
    layer = _GEMMA_LAYER if architecture == "gemma3" else _LAYER
    part = next((ours for ours, theirs in layer.items() if theirs == match[2]), None)
    return None if part is None else f"blk.{int(match[1])}.{part}.{match[3]}"


def heads_interleaved(architecture: str, name: str) -> str | None:
    """"q" or "k" for tensors (Hugging Face's name) whose rows GGUF keeps in another order, else None."""
    match = re.search(r"self_attn\.([qk])_proj\.(weight|bias)$", name) if architecture in INTERLEAVED else None
    return match[1] if match else None


def norm_plus_one(architecture: str, name: str) -> bool:
    return architecture in NORMS_PLUS_ONE and name.endswith("norm.weight")


def row_order(heads: int, rows: int) -> np.ndarray:
    """For each row as Hugging Face orders them, the row of the GGUF: within a head, (pair, half) becomes (half, pair)."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)


def place_of_rows(head: int, first: int, count: int) -> np.ndarray:
    """Where rows first .. first + count, as Hugging Face orders them, stand in the GGUF: the inverse of `row_order`, piece by piece."""
    rows = np.arange(first, first + count)
    within = rows % head
    return rows - within + within % (head // 2) * 2 + within // (head // 2)
