"""The same weights through GGUF: written by the `gguf` package under llama.cpp's names and conventions, they compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers as hf

from octavo.loading import load

from .tiny import BASE, VOCABULARY, Driver, build, expected_logits, random_tokens

FAMILIES: dict[str, tuple[str, type[hf.PretrainedConfig], dict[str, Any]]] = {
    "llama": ("llama", hf.LlamaConfig, {}),
    "llama-biases-tied": ("llama", hf.LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen2": ("qwen2", hf.Qwen2Config, {}),
    "qwen3": ("qwen3", hf.Qwen3Config, {"head_dim": 32}),
    "smollm3": ("smollm3", hf.SmolLM3Config, {"num_hidden_layers": 4}),
    "gemma3": ("gemma3", hf.Gemma3TextConfig, {"num_hidden_layers": 7, "head_dim": 32, "sliding_window": 20, "query_pre_attn_scalar": 32}),
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp's converter lays them: pairs side by side instead of halves."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, architecture: str, config: Any, tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head)
    writer.add_value_length(head)
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    words = [f"w{i}" for i in range(VOCABULARY)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * VOCABULARY)
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for name, tensor in tensors.items():
        if architecture in ("llama", "smollm3") and ("q_proj" in name or "k_proj" in name):
            tensor = interleaved(tensor, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if architecture == "gemma3" and "norm" in name:
            tensor = tensor + np.float32(1)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_gguf_computes_what_the_folder_computes(tmp_path: Path, family: str) -> None:
    architecture, kind, changes = FAMILIES[family]
    config = kind(**{**BASE, **changes})
    peer = build(tmp_path / "folder", config)
    tied = config.tie_word_embeddings
    tensors = {name: tensor.numpy() for name, tensor in peer.state_dict().items() if not (tied and name == "lm_head.weight")}
    write_gguf(tmp_path / "model.gguf", architecture, config, tensors)
    loaded = load(tmp_path / "model.gguf", quantization="32bit", use_cache=False)
    assert 2 in loaded.eos_token_ids
    prompt = random_tokens(100)
    np.testing.assert_allclose(Driver(loaded).feed({0: prompt})[0], expected_logits(peer, prompt), rtol=0, atol=1e-4)
