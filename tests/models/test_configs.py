"""Configs: both spellings, nested and multimodal ones, heads that are stored twice, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from octavo.errors import CapacityError, CheckpointError, ModelError, UnknownNameError
from octavo.layers import declare
from octavo.loading import load
from octavo.models import models, read_model

from .tiny import BASE, Driver, build, expected_logits, random_tokens

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **BASE}


def rewrite(folder: Path, change: Any) -> None:
    """config.json through `change`."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(change(config)))


def logits_of(folder: Path, prompt: np.ndarray) -> np.ndarray:
    return Driver(load(folder, quantization="32bit", use_cache=False)).feed({0: prompt})[0]


def test_both_spellings_of_rope_mean_the_same(tmp_path: Path) -> None:
    parameters = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 64}
    peer = build(tmp_path, hf.LlamaConfig(**BASE, rope_parameters=parameters))
    prompt = random_tokens(120)
    new = logits_of(tmp_path, prompt)

    def older(config: dict[str, Any]) -> dict[str, Any]:
        scaling = config.pop("rope_parameters")
        return {**config, "rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}

    rewrite(tmp_path, older)
    np.testing.assert_array_equal(logits_of(tmp_path, prompt), new)
    np.testing.assert_allclose(new, expected_logits(peer, prompt), rtol=0, atol=1e-4)


def test_gemma_in_the_older_spelling(tmp_path: Path) -> None:
    config = hf.Gemma3TextConfig(**BASE, head_dim=32, sliding_window=20, query_pre_attn_scalar=48, layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"])
    build(tmp_path, config)
    prompt = random_tokens(90)
    new = logits_of(tmp_path, prompt)

    def older(config: dict[str, Any]) -> dict[str, Any]:
        ropes = config.pop("rope_parameters")
        del config["layer_types"]
        return {**config, "rope_theta": ropes["full_attention"]["rope_theta"], "rope_local_base_freq": ropes["sliding_attention"]["rope_theta"],
                "sliding_window_pattern": 2}

    rewrite(tmp_path, older)
    np.testing.assert_array_equal(logits_of(tmp_path, prompt), new)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_text_part_of_multimodal_gemma(tmp_path: Path, prefix: str) -> None:
    text = {**BASE, "head_dim": 32, "sliding_window": 20, "query_pre_attn_scalar": 48}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=96, boi_token_index=94, eoi_token_index=95)
    peer = build(tmp_path, config)
    if prefix != "model.language_model.":
        from safetensors.torch import load_file, save_file

        tensors = load_file(tmp_path / "model.safetensors")
        renamed = {name.replace("model.language_model.", prefix).replace("model.vision_tower.", "vision_tower."): t for name, t in tensors.items()}
        assert any(name.startswith(prefix) for name in renamed)
        save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    prompt = random_tokens(50) % 90  # no picture tokens
    np.testing.assert_allclose(logits_of(tmp_path, prompt), expected_logits(peer, prompt), rtol=0, atol=1e-4)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_is_stored_beside_a_tied_embedding(tmp_path: Path, same: bool) -> None:
    """As transformers does it: equal ones are one, different ones are two whatever the config says."""
    from safetensors.torch import load_file, save_file

    build(tmp_path, hf.LlamaConfig(**BASE, tie_word_embeddings=True))
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.clone() if same else embedding.flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = load(tmp_path, quantization="32bit", use_cache=False)
    assert loaded.model.tied is same
    peer = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompt = random_tokens(20)
    np.testing.assert_allclose(Driver(loaded).feed({0: prompt})[0], expected_logits(peer, prompt), rtol=0, atol=1e-4)


def test_gemma_embedding_factor_is_rounded_as_the_model_runs() -> None:
    config = {**BASE, "model_type": "gemma3_text", "hidden_size": 640, "head_dim": 32}
    assert read_model(config, rounding="fp32").embed_factor == np.float32(640**0.5)  # type: ignore[attr-defined]
    assert read_model(config, rounding="bf16").embed_factor == 25.25


@pytest.mark.parametrize(("change", "names"), [
    ({"model_type": "mamba"}, "llama"),
    ({"model_type": None}, "model_type"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"num_attention_heads": "4"}, "num_attention_heads"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"hidden_size": 50}, "hidden_size"),
    ({"head_dim": 13}, "head_dim"),
    ({"hidden_act": "relu2"}, "hidden_act"),
    ({"attention_bias": "yes"}, "attention_bias"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"max_position_embeddings": -1}, "max_position_embeddings"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_scaling": {"rope_type": "quantum", "factor": 2.0}}, "quantum"),
    ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
    ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6, "original_max_position_embeddings": 64}}, "longrope"),
    ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ({"model_type": "gemma3_text", "layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
    ({"model_type": "qwen2", "layer_types": ["full_attention"], "use_sliding_window": True}, "layer_types"),
    ({"model_type": "gemma3"}, "text_config"),
])
def test_fields_that_cannot_be_served_are_named(change: dict[str, Any], names: str) -> None:
    with pytest.raises((ModelError, UnknownNameError), match=names):
        read_model({**LLAMA, **change})


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(CapacityError, match="256"):
        read_model(LLAMA, max_model_len=257)
    assert read_model(LLAMA, max_model_len=100).max_model_len == 100


def test_yarn_reaches_as_far_as_its_factor() -> None:
    config = {**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}}
    assert read_model(config).max_model_len == 1024


def test_every_architecture_declares_its_tensors() -> None:
    assert {"llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma3_text", "gemma3"} <= models().keys()
    declared = declare(read_model(LLAMA).describe)
    assert declared.wanted["model.layers.2.self_attn.k_proj.weight"].shape == (24, 48)
    assert declared.wanted["lm_head.weight"].uses == {"linear"}
    assert declare(read_model({**LLAMA, "tie_word_embeddings": True}).describe).wanted["model.embed_tokens.weight"].uses == {"linear", "embed"}


@pytest.mark.parametrize(("change", "says"), [
    (lambda t: t.pop("model.norm.weight"), "'model.norm.weight' \\[48\\] is missing"),
    (lambda t: t.update({"model.norm.weight": torch.zeros(47)}), "model.norm.weight' has shape \\[47\\]"),
    (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}), "q_proj.bias' \\[48\\] has no use"),
    (lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(80, 48, dtype=torch.int64)}), "up_proj.weight"),
    (lambda t: t["model.layers.1.mlp.up_proj.weight"][3].fill_(float("nan")), "up_proj.weight' holds NaN"),
    (lambda t: t["model.layers.1.input_layernorm.weight"].fill_(float("inf")), "input_layernorm.weight' holds NaN or inf"),
])
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: Any, says: str) -> None:
    from safetensors.torch import load_file, save_file

    build(tmp_path, hf.LlamaConfig(**BASE))
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=says) as raised:
        load(tmp_path, quantization="8bit", use_cache=False)
    assert "model.safetensors" in str(raised.value) or tmp_path.name in str(raised.value)
