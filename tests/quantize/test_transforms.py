"""A transformed model is the same function: logits by transformers in float64, before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from models.tiny import BASE, build, random_tokens

from octavo.calibration import Block, Blocks
from octavo.calibration.blocks import Weights
from octavo.checkpoints import open_checkpoint
from octavo.errors import UsageError
from octavo.loading import open_model
from octavo.quantize import Transform, transform
from octavo.schemes import Plan, Scheme

FAMILIES: dict[str, tuple[type[hf.PretrainedConfig], dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": (hf.LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (hf.Qwen2Config, {}),
    "qwen3": (hf.Qwen3Config, {"head_dim": 32}),
    "gemma3": (hf.Gemma3TextConfig, {"num_hidden_layers": 2, "head_dim": 32, "sliding_window": 20, "query_pre_attn_scalar": 48}),
}
OUTLIER, DEAD = 5, 7  # channels of the first norm that are very large, and nothing


def damage(model: torch.nn.Module) -> None:
    """Extremes: a channel that is large everywhere, one whose gain is 0, a value row of zeros, a column of zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layers.0.input_layernorm.weight"):
                parameter[OUTLIER] = 40.0
                parameter[DEAD] = -1.0 if "Gemma" in type(model).__name__ else 0.0
            elif name.endswith("layers.0.self_attn.v_proj.weight"):
                parameter[3] = 0.0
            elif name.endswith("layers.1.mlp.gate_proj.weight"):
                parameter[:, 2] = 0.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, torch.nn.Module]]:
    """A family's tiny model in bfloat16 on disk, and the same in float64."""
    made: dict[str, tuple[Path, torch.nn.Module]] = {}

    def get(family: str) -> tuple[Path, torch.nn.Module]:
        if family not in made:
            kind, changes = FAMILIES[family]
            folder = tmp_path_factory.mktemp(family)
            model = build(folder, kind(**{**BASE, "num_hidden_layers": 2, **changes}), torch.bfloat16)
            damage(model)
            model.save_pretrained(folder)
            made[family] = folder, model.double()
        return made[family]

    return get


def transformed(folder: Path, one: Transform, scheme: str, threads: int = 1, needs: Any = "nothing") -> tuple[dict[str, np.ndarray], Weights]:
    """All tensors as the transform leaves them, unrounded."""
    checkpoint, model, found = open_model(open_checkpoint(folder), 64)
    schemes = {name: Plan.parse(scheme).default for name in found if name.startswith("model.layers.") and len(checkpoint.tensors[found[name]].shape) == 2}
    weights = Weights(checkpoint, found)
    result: dict[str, np.ndarray] = {}
    one.prepare(model, weights)
    with Blocks(model, weights, random_tokens(8 * 40, 1).reshape(8, 40), threads) as blocks:
        for block in blocks:
            one.apply(block, _of(block, schemes), needs)
            block.run()
            block.finish()
            result |= block.tensors
    names = [name for name in [*found, *weights.edits] if name not in result]
    return result | {name: weights.get(name) for name in names}, weights


def _of(block: Block, schemes: dict[str, Scheme]) -> dict[str, Scheme]:
    return {name: scheme for name, scheme in schemes.items() if name.startswith(f"model.layers.{block.layer}.")}


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(random_tokens(60, 2)[None].astype(np.int64))).logits[0].numpy()


def changed_logits(model: torch.nn.Module, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """By the float64 model with these tensors in it."""
    old = {name: value.clone() for name, value in model.state_dict().items()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied and "lm_head.weight" in tensors:
        model.get_output_embeddings().weight = torch.nn.Parameter(old["lm_head.weight"].clone())
    assert set(tensors) | {"lm_head.weight"} >= set(old)
    model.load_state_dict({name: torch.from_numpy(tensors[name].astype(np.float64)) if name in tensors else old[name] for name in old})
    found = logits(model)
    model.load_state_dict(old)
    if tied:
        model.tie_weights()
    return found


CASES = [("awq", {}, "W4g16A16"), ("smoothquant", {}, "W8A8"), ("hadamard", {}, "W4g16A16"), ("hadamard", {"residual": "yes"}, "W4g16A16")]


@pytest.mark.parametrize("name,options,scheme", CASES, ids=lambda value: str(value))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformed_model_is_the_same_function(models: Any, family: str, name: str, options: dict[str, str], scheme: str) -> None:
    folder, model = models(family)
    one = transform(name, {"clip": "no"} if name == "awq" else options)
    if options and family == "gemma3":
        with pytest.raises(UsageError, match="norms between"):
            transformed(folder, one, scheme)
        return
    tensors, _ = transformed(folder, one, scheme)
    expected = logits(model)
    found = changed_logits(model, tensors)
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, float(np.abs(expected).max()))
    weight = "model.layers.0.self_attn.v_proj.weight"
    assert not np.allclose(tensors[weight], model.state_dict()[weight].numpy(), rtol=1e-3)  # something was done


@pytest.mark.parametrize("name,scheme", [("awq", "W4g16A16"), ("smoothquant", "W8A8")])
def test_folded_gains_are_stored_exactly(models: Any, name: str, scheme: str) -> None:
    folder, _ = models("gemma3")
    tensors, _ = transformed(folder, transform(name), scheme)
    for tensor in (tensors[key] for key in tensors if key.endswith("input_layernorm.weight")):
        assert np.array_equal(tensor, torch.from_numpy(tensor).bfloat16().float().numpy())


@pytest.mark.parametrize("name,scheme", [("awq", "W3g16A16"), ("smoothquant", "W8A8"), ("hadamard", "W8A8")])
def test_any_number_of_threads_gives_the_same_bits(models: Any, name: str, scheme: str) -> None:
    folder, _ = models("qwen2")
    first, second = (transformed(folder, transform(name), scheme, threads)[0] for threads in (1, 2))
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_smoothquant_wants_rounded_inputs(models: Any) -> None:
    with pytest.raises(UsageError, match="inputs are not rounded"):
        transformed(models("llama")[0], transform("smoothquant"), "W4g16A16")


