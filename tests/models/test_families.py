"""Every family, in every variant that configs know, computes what transformers computes: max |difference of logits| <= 1e-4 in float32."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from octavo.loading import LoadedModel, load

from .tiny import BASE, Driver, build, expected_logits, random_tokens

TOLERANCE = 1e-4
LONG = 150  # tokens: several pages, and beyond every window below


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **options}}


GEMMA = {"num_hidden_layers": 7, "head_dim": 32, "sliding_window": 20, "query_pre_attn_scalar": 48}
VARIANTS: dict[str, tuple[type[hf.PretrainedConfig], dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, {}),
    "llama-mqa-tied-biases": (hf.LlamaConfig, {"num_key_value_heads": 1, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-mha-head20-gelu": (hf.LlamaConfig, {"num_key_value_heads": 4, "head_dim": 20, "hidden_act": "gelu", "rms_norm_eps": 1e-3}),
    "llama-7-heads": (hf.LlamaConfig, {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1, "intermediate_size": 37}),
    "llama-theta": (hf.LlamaConfig, rope("default", rope_theta=500000.0)),
    "llama-linear": (hf.LlamaConfig, rope("linear", factor=4.0)),
    "llama-dynamic": (hf.LlamaConfig, rope("dynamic", factor=4.0)),
    "llama-llama3": (hf.LlamaConfig, rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)),
    "llama-yarn": (hf.LlamaConfig, rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama-yarn-options": (hf.LlamaConfig, rope("yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=16.0, beta_slow=2.0,
                                                mscale=0.7, mscale_all_dim=1.2, truncate=False)),
    "llama-longrope": (hf.LlamaConfig, rope("longrope", short_factor=[1.0, 1.1, 1.5, 2.0, 3.0, 4.0], long_factor=[1.0, 1.1, 1.5, 2.0, 3.0, 4.0],
                                            factor=2.0, original_max_position_embeddings=64)),
    "mistral-window": (hf.MistralConfig, {"sliding_window": 24}),
    "mistral-no-window": (hf.MistralConfig, {"sliding_window": None, "head_dim": 16}),
    "smollm3": (hf.SmolLM3Config, {"num_hidden_layers": 5}),
    "smollm3-windows": (hf.SmolLM3Config, {"num_hidden_layers": 5, "use_sliding_window": True, "sliding_window": 16, "no_rope_layers": [1, 0, 1, 0, 0],
                                           "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "qwen2": (hf.Qwen2Config, {}),
    "qwen2-windows-tied": (hf.Qwen2Config, {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "tie_word_embeddings": True}),
    "qwen2-yarn": (hf.Qwen2Config, rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "qwen3": (hf.Qwen3Config, {"head_dim": 32}),
    "qwen3-windows-bias": (hf.Qwen3Config, {"head_dim": 24, "attention_bias": True, "use_sliding_window": True, "sliding_window": 33, "max_window_layers": 0,
                                            "num_key_value_heads": 1}),
    "gemma3": (hf.Gemma3TextConfig, GEMMA),
    "gemma3-softcap-untied": (hf.Gemma3TextConfig, {**GEMMA, "final_logit_softcapping": 5.0, "tie_word_embeddings": False, "attention_bias": True}),
    "gemma3-linear": (hf.Gemma3TextConfig, {**GEMMA, "num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                                            "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                                                                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
}


@dataclass
class Case:
    folder: Path
    peer: torch.nn.Module
    loaded: LoadedModel


@pytest.fixture(scope="module", params=list(VARIANTS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    kind, changes = VARIANTS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    peer = build(folder, kind(**{**BASE, **changes}))
    return Case(folder, peer, load(folder, quantization="32bit", use_cache=False))


@pytest.mark.parametrize("length", [1, 5, 33, LONG])
def test_prompts(case: Case, length: int) -> None:
    prompt = random_tokens(length, length)
    logits = Driver(case.loaded).feed({0: prompt})[0]
    np.testing.assert_allclose(logits, expected_logits(case.peer, prompt), rtol=0, atol=TOLERANCE)


def test_chunks_and_single_tokens_give_the_bits_of_the_whole(case: Case) -> None:
    prompt = random_tokens(LONG, 7)
    whole = Driver(case.loaded).feed({0: prompt})[0]
    driver, cuts = Driver(case.loaded), [0, 7, 39, 40, 41, 96, 140, *range(141, LONG + 1)]
    parts = [driver.feed({0: prompt[a:b]})[0] for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_sequences_in_one_batch_do_not_meet(case: Case) -> None:
    prompts = {0: random_tokens(60, 1), 1: random_tokens(3, 2), 2: random_tokens(97, 3)}
    driver = Driver(case.loaded, sequences=3)
    first = driver.feed({s: prompt[: len(prompt) // 2] for s, prompt in prompts.items() if s != 1})
    rest = driver.feed({s: prompt[len(prompt) // 2 :] if s != 1 else prompt for s, prompt in prompts.items()})
    for s, prompt in prompts.items():
        logits = np.concatenate([first[s], rest[s]]) if s in first else rest[s]
        np.testing.assert_allclose(logits, expected_logits(case.peer, prompt), rtol=0, atol=TOLERANCE)


def test_reference_backend_agrees(case: Case) -> None:
    prompt = random_tokens(40, 9)
    reference = load(case.folder, quantization="32bit", use_cache=False, backend="reference")
    logits = Driver(reference).feed({0: prompt})[0]
    np.testing.assert_allclose(logits, expected_logits(case.peer, prompt), rtol=0, atol=TOLERANCE)
