"""Learned rounding: its gradients against autograd's, what it gains, that threads and a second run change no bit, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from models.tiny import BASE, build, random_tokens

from octavo.checkpoints import open_checkpoint
from octavo.errors import UsageError
from octavo.qtensor import quantize as to_nearest
from octavo.quantize import Wish, quantize
from octavo.quantize.rounders.autoround import Autoround, _State
from octavo.schemes import TensorSpec

GROUPS = TensorSpec("int3", "group", 32, scale_format="fp16")


@pytest.fixture(autouse=True)
def _own_cache(cache_dir: Path) -> None:
    """Digests are remembered in the test's own folder."""


@pytest.fixture
def model(shared_data: Path) -> Path:
    return shared_data / "models" / "babyllama105-hf"


def wish(shared_data: Path, **changes: object) -> Wish:
    values = {"scheme": "W3g32A16", "method": "autoround", "options": {"autoround.steps": "8", "autoround.start": "rtn"},
              "data": shared_data / "text" / "tinystories-a.jsonl", "sequences": 12, "tokens": 64}
    return Wish(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [GROUPS, TensorSpec("int4", "group", 32, symmetric=False, scale_format="fp16"), TensorSpec("int2", "channel")])
def test_start_is_the_rounder_s(spec: TensorSpec) -> None:
    weight = np.random.default_rng(0).standard_normal((48, 96)).astype(np.float32)
    weight[3], weight[:, 7] = 0, 0
    tensor = to_nearest(weight, spec)
    state = _State(weight, tensor)
    values, _, _ = state.values()
    np.testing.assert_allclose(values.numpy(), tensor.dequantize(), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(state.result().codes, tensor.codes)


def test_gradients_are_autograd_s() -> None:
    """Signs of the steps, against torch's own backward through a straight-through round."""
    weight = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    state = _State(weight, to_nearest(weight, GROUPS))
    state.offset += 0.3 * torch.randn(state.offset.shape, generator=torch.Generator().manual_seed(0))
    offset, factor = state.offset.clone().requires_grad_(), state.factor.clone().requires_grad_()
    place = state.weight / state.spread(state.scales * factor) + offset
    rounded = place + (torch.round(place) - place).detach()
    value = rounded.clamp(state.low, state.high) * state.spread(state.scales * factor)
    pull = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    (value * pull).sum().backward()
    values, codes, free = state.values()
    torch.testing.assert_close(values, value.detach())
    before = state.offset.clone(), state.factor.clone()
    state.step(pull, codes, free, 0.01, 0.001)
    assert offset.grad is not None and factor.grad is not None
    inside = (place.detach().round() > state.low) & (place.detach().round() < state.high)  # at the ends, clamp and rounding agree on nothing
    torch.testing.assert_close((before[0] - state.offset)[inside], 0.01 * torch.sign(offset.grad)[inside])  # the first step is the sign
    settled = factor.grad.abs() > 1e-3
    assert (torch.sign(before[1] - state.factor) == torch.sign(factor.grad))[settled].float().mean() > 0.9


def test_moves_codes_and_repeats(model: Path, shared_data: Path, tmp_path: Path) -> None:
    asked = wish(shared_data, scheme="W2g32A16", sequences=32)
    quantize(model, tmp_path / "one", asked, threads=1)
    quantize(model, tmp_path / "two", asked, threads=2)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (tmp_path / "two" / "model.safetensors").read_bytes()
    learned, nearest = open_checkpoint(tmp_path / "one"), to_nearest
    original = open_checkpoint(model)
    name = "model.layers.0.mlp.down_proj.weight"
    whole = original.read(name).dequantize()
    codes = learned.read(name).codes != nearest(whole, learned.tensors[name].spec or GROUPS).codes
    assert 0 < codes.mean() < 0.5  # it moved some, and not all


@pytest.mark.parametrize(("changes", "told"), [
    ({"scheme": "Wmxfp4A16", "sequences": 4}, "integer codes"),
    ({"data": None}, "calibration text"),
    ({"options": {"autoround.stepz": "3"}}, "stepz"),
    ({"options": {"autoround.steps": "many"}}, "many"),
])
def test_refusals(model: Path, shared_data: Path, tmp_path: Path, changes: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        quantize(model, tmp_path / "out", wish(shared_data, **changes))
    assert not (tmp_path / "out").exists()


def test_options_have_defaults() -> None:
    assert Autoround().start == "gptq" and Autoround.needs == "gram"


def test_starts_from_corrected_weights(model: Path, shared_data: Path, tmp_path: Path) -> None:
    """Without a step it is its start: GPTQ after qep; and GPTQ alone where it is told so."""
    def learned(name: str, **changes: object) -> bytes:
        quantize(model, tmp_path / name, wish(shared_data, **changes), threads=2)
        return (tmp_path / name / "model.safetensors").read_bytes()

    none = {"autoround.steps": "0"}
    assert learned("a", options=none) == learned("b", method="gptq", options={}, transforms=("qep",)) == learned("c", options=none, transforms=("qep",))
    assert learned("d", options={**none, "autoround.correct": "no"}) == learned("e", method="gptq", options={})


def test_gemma_keeps_its_start_and_says_so(tmp_path: Path) -> None:
    """Learning there made a 2-bit model several times worse, layer by layer a little better (LOG)."""
    folder = tmp_path / "model"
    changes = {"num_hidden_layers": 2, "head_dim": 32, "sliding_window": 20, "query_pre_attn_scalar": 48}
    build(folder, hf.Gemma3TextConfig(**{**BASE, **changes}), torch.bfloat16)
    np.save(tmp_path / "ids.npy", random_tokens(8 * 40, 1).reshape(8, 40))
    found = {}
    for method, options in (("autoround", {"autoround.steps": "4"}), ("gptq", {})):
        report = quantize(folder, tmp_path / method, Wish("W4g16A16", method, (), options, tmp_path / "ids.npy", 8, 40))
        found[method] = (tmp_path / method / "model.safetensors").read_bytes()
        assert any("nothing is learned in Gemma3" in note for note in report.notes) is (method == "autoround")
    assert found["autoround"] == found["gptq"]
