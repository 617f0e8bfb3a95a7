"""Bias correction against its definition in float64: the mean of each corrected output is that of the unrounded linear on the same inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from models.tiny import BASE, VOCABULARY, Driver, build, expected_logits, random_tokens

from octavo.calibration import Blocks, Group
from octavo.calibration.blocks import Weights
from octavo.checkpoints import open_checkpoint
from octavo.errors import UsageError
from octavo.loading import load, open_model
from octavo.quantize import Wish, quantize

ROWS, LENGTH = 6, 24
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original")
    build(path, hf.LlamaConfig(**{**BASE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "attention_bias": True}))
    np.save(path / "ids.npy", np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH), dtype=np.int32))
    return path


def wish(folder: Path, scheme: str, **options: str) -> Wish:
    return Wish(scheme, "rtn", ("bias_correction",), {f"bias_correction.{key}": value for key, value in options.items()}, folder / "ids.npy", ROWS, LENGTH,
                observer="entropy" if "s" in scheme else "")


def inputs_of(folder: Path, wanted: str) -> np.ndarray:
    """What a linear reads in the unrounded model, float64 [rows, k]."""
    checkpoint, model, found = open_model(open_checkpoint(folder))
    seen: list[np.ndarray] = []

    def visit(group: Group) -> None:
        if wanted in group.names:
            seen.append(group.inputs(1 << 20).astype(np.float64))

    with Blocks(model, Weights(checkpoint, found), np.load(folder / "ids.npy"), 1) as blocks:
        next(iter(blocks)).run(visit)
    return seen[0]


@pytest.mark.parametrize("scheme", ["W2g32A16", "W4g32A8ts"])
def test_the_mean_of_the_outputs_is_what_it_was(folder: Path, scheme: str, tmp_path: Path) -> None:
    quantize(folder, tmp_path / "out", wish(folder, scheme), threads=2)
    made, original = open_checkpoint(tmp_path / "out"), open_checkpoint(folder)
    x = inputs_of(folder, f"{Q_PROJ}.weight")
    read = x
    if scales := made.input_scales():  # type: ignore[attr-defined]
        scale = float(scales[f"{Q_PROJ}.weight"][0])
        read = np.clip(np.rint(x / scale), -127, 127) * scale
        assert np.abs(x).max() > 127.5 * scale  # something is clipped
    was = x @ original.read(f"{Q_PROJ}.weight").dequantize().astype(np.float64).T + original.read(f"{Q_PROJ}.bias").dequantize()
    rounded = read @ made.read(f"{Q_PROJ}.weight").dequantize().astype(np.float64).T
    corrected, uncorrected = (rounded + one.read(f"{Q_PROJ}.bias").dequantize() - was for one in (made, original))
    assert np.abs(corrected.mean(axis=0)).max() < 1e-5 < np.abs(uncorrected.mean(axis=0)).max()
    assert not any("gate_proj.bias" in name for name in made.tensors)
    assert np.isfinite(Driver(load(tmp_path / "out", use_cache=False)).feed({0: random_tokens(20)})[0]).all()


@pytest.mark.usefixtures("float_lanes")
def test_biases_are_added_where_the_architecture_knows_them(tmp_path: Path) -> None:
    model = build(tmp_path / "plain", hf.LlamaConfig(**{**BASE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}), torch.bfloat16)
    np.save(tmp_path / "plain" / "ids.npy", np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH), dtype=np.int32))
    with pytest.raises(UsageError, match="no linear of this model has a bias"):
        quantize(tmp_path / "plain", tmp_path / "no", wish(tmp_path / "plain", "W3g32A16"), threads=1)
    quantize(tmp_path / "plain", tmp_path / "out", wish(tmp_path / "plain", "W3g32A16", add="yes"), threads=1)
    loaded = load(tmp_path / "out", kv_cache="fp32", use_cache=False)
    assert loaded.config["attention_bias"] is True and loaded.config["mlp_bias"] is True
    ours = Driver(loaded).feed({0: random_tokens(20)})[0]
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert np.abs(theirs.model.layers[1].mlp.down_proj.bias.detach().numpy()).max() > 0
    expected = expected_logits(theirs, random_tokens(20))
    assert np.abs(ours - expected).max() < 2e-3 * np.abs(expected).max()
    plain = expected_logits(model.float(), random_tokens(20))
    assert np.corrcoef(plain.ravel(), expected.ravel())[0, 1] > 0.8


def test_a_model_without_a_place_says_so(tmp_path: Path) -> None:
    build(tmp_path / "mistral", hf.MistralConfig(**{**BASE, "hidden_size": 64, "num_hidden_layers": 1}))
    np.save(tmp_path / "mistral" / "ids.npy", np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH), dtype=np.int32))
    with pytest.raises(UsageError, match="no place for more biases"):
        quantize(tmp_path / "mistral", tmp_path / "out", wish(tmp_path / "mistral", "W4g32A16", add="yes"), threads=1)
