"""Transforms through `quantize` to a checkpoint that loads: what was folded, rotated and kept is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from models.tiny import BASE, Driver, build, expected_logits, random_tokens

from octavo.checkpoints import open_checkpoint
from octavo.conversion import convert
from octavo.errors import UsageError
from octavo.loading import load
from octavo.quantize import Wish, quantize


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A tied Llama in bfloat16, and its logits of 60 tokens."""
    folder = tmp_path_factory.mktemp("original")
    model = build(folder, hf.LlamaConfig(**{**BASE, "hidden_size": 96, "intermediate_size": 160, "tie_word_embeddings": True}), torch.bfloat16)
    np.save(folder / "ids.npy", random_tokens(8 * 40, 1).reshape(8, 40))
    return folder, expected_logits(model.float(), random_tokens(60, 2))


def lost(folder: Path, expected: np.ndarray) -> float:
    """Mean squared error of the logits, as a part of their variance."""
    found = Driver(load(folder, use_cache=False)).feed({0: random_tokens(60, 2)})[0]
    return float(np.square(found - expected).mean() / expected.var())


@pytest.mark.parametrize("transforms,options", [(("awq",), {}), (("smoothquant",), {}), (("hadamard", "awq"), {"hadamard.residual": "yes"})], ids=str)
def test_transformed_checkpoints_load(tmp_path: Path, original: tuple[Path, np.ndarray], transforms: tuple[str, ...], options: dict[str, str]) -> None:
    folder, expected = original
    wish = Wish("W8g32A8", "rtn", transforms, options, folder / "ids.npy", 8, 40)
    report = quantize(folder, tmp_path / "out", wish)
    assert lost(tmp_path / "out", expected) < 2e-3
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is ("hadamard" not in transforms)
    assert [one["name"] for one in report.settings["transforms"]] == list(transforms)


def test_what_is_kept_stays_as_it_is(tmp_path: Path, original: tuple[Path, np.ndarray]) -> None:
    folder, _ = original
    quantize(folder, tmp_path / "out", Wish("W4g32A16", "rtn", keep=("*.mlp.*",)))
    written, source = open_checkpoint(tmp_path / "out"), open_checkpoint(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    assert np.array_equal(written.read(name).dequantize(), source.read(name).dequantize())
    spec = written.tensors["model.layers.1.self_attn.q_proj.weight"].spec
    assert spec is not None and spec.format == "int4"


DOWN = "model.layers.1.mlp.down_proj.weight"


def outliers(folder: Path, source: Path) -> None:
    """A copy whose down projections meet an input a hundred times as large as the others: the function stays (a row of up, a column of down)."""
    model = hf.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[9] *= 128
            layer.mlp.down_proj.weight[:, 9] /= 128
    shutil.copytree(source, folder)
    model.save_pretrained(folder)


@pytest.mark.parametrize("method,scheme", [("rtn", "W8g32A8"), ("gptq", "W8g32A8"), ("gptq", "W8zA8g32"), ("hqq", "W8zA8")])
def test_down_projections_that_meet_rotated_inputs(tmp_path: Path, original: tuple[Path, np.ndarray], method: str, scheme: str) -> None:
    """Nothing but the rotation takes the outlier from what is rounded; the codes stand for the rotated weight, and the loader knows."""
    source, expected = original
    outliers(tmp_path / "source", source)
    found = {}
    options = {"rtn.importance": "mean_square"} if method == "rtn" else {}  # of rotated inputs
    for name, plan in (("plain", scheme), ("turned", f"{scheme}; *down_proj*={scheme}h")):
        quantize(tmp_path / "source", tmp_path / name, Wish(plan, method, (), options, source / "ids.npy", 8, 40), to="octavo")
        found[name] = lost(tmp_path / name, expected)
    assert found["turned"] < found["plain"] / 2
    tensor = open_checkpoint(tmp_path / "turned").read(DOWN)
    assert tensor.rotation == 32  # of 160 inputs
    values = open_checkpoint(tmp_path / "source").read(DOWN).dequantize()
    assert np.abs(tensor.dequantize() - values).max() < 0.1 * np.abs(values).max()


def test_a_rotation_is_refused_where_it_cannot_be_kept(tmp_path: Path, original: tuple[Path, np.ndarray]) -> None:
    folder, _ = original

    def refused(said: str, scheme: str, method: str = "rtn", to: str = "octavo", **more: str) -> None:
        with pytest.raises(UsageError, match=said):
            quantize(folder, tmp_path / "out", Wish(scheme, method, (), more, folder / "ids.npy", 8, 40), to=to)
        assert not (tmp_path / "out").exists()

    refused("cannot say that inputs are rotated", "W8g32A8h", to="compressed-tensors")
    refused("learns codes of weights as they are", "W4g32A8h", "autoround")
    refused("permutes inputs", "W4g32A8h", "gptq", **{"gptq.groups": "dynamic"})
    with pytest.raises(UsageError, match="inputs are rotated"):
        convert(folder, tmp_path / "out", to="compressed-tensors", quantization="W8A8h")


def test_a_killed_run_with_a_rotation_ends_with_the_same_bytes(tmp_path: Path, original: tuple[Path, np.ndarray]) -> None:
    folder, _ = original
    wish = Wish("W4g32A8h", "gptq", ("qep",), {}, folder / "ids.npy", 8, 40)
    quantize(folder, tmp_path / "whole", wish, to="octavo")

    def stop(done: int, total: int, seconds: float) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(folder, tmp_path / "out", wish, to="octavo", on_progress=stop)
    assert quantize(folder, tmp_path / "out", wish, to="octavo", threads=2).resumed == 1
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
