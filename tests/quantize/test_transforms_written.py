"""Transforms through `quantize` to a checkpoint that loads: what was folded, rotated and kept is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from models.tiny import BASE, Driver, build, expected_logits, random_tokens

from octavo.checkpoints import open_checkpoint
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
