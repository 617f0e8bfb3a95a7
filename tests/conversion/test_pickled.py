"""PyTorch's own files: refused unless allowed, read by the weights_only loader alone, and then the same numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from octavo.checkpoints import open_checkpoint
from octavo.conversion import convert
from octavo.errors import CheckpointError

from .small_model import numbers


@pytest.fixture
def pickled(model: Path) -> Path:
    """The model with nothing but pytorch_model.bin."""
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return model


class Harm:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_the_same_numbers(model: Path, tmp_path: Path) -> None:
    before = numbers(model)
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pickled weights.*--allow-pickle"):
        convert(model, tmp_path / "out", to="safetensors")
    convert(model, tmp_path / "out", to="safetensors", allow_pickle=True)
    after = numbers(tmp_path / "out")
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


def test_buffers_move_as_they_are(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    buffers = {"ids": torch.arange(7), "mask": torch.tensor([True, False]), "wide": torch.tensor([1e-300], dtype=torch.float64)}
    torch.save(tensors | buffers, model / "pytorch_model.bin")
    report = convert(model, tmp_path / "out", to="fp8", allow_pickle=True)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in buffers.items())
    assert {row.written for row in report.rows if row.exact} == {"BF16", "I64", "BOOL", "F64"}
    torch.save(tensors | {"c": torch.zeros(2, dtype=torch.complex64)}, model / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"type torch\.complex64"):
        open_checkpoint(model, allow_pickle=True)


def test_shards_by_their_index(model: Path, tmp_path: Path) -> None:
    before = numbers(model)
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    homes = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for home in set(homes.values()):
        torch.save({name: tensors[name] for name in names if homes[name] == home}, model / home)
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": homes}))
    found = open_checkpoint(model, allow_pickle=True)
    assert all(np.array_equal(before[name], found.read(name).dequantize()) for name in before)
    homes[names[0]] = "../pytorch_model.bin"
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": homes}))
    with pytest.raises(CheckpointError, match="is no file of this folder"):
        open_checkpoint(model, allow_pickle=True)


def test_code_in_a_pickle_is_not_run(pickled: Path, tmp_path: Path) -> None:
    torch.save({"model.norm.weight": Harm(tmp_path / "harm")}, pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="weights_only loader"):
        convert(pickled, tmp_path / "out", to="safetensors", allow_pickle=True)
    assert not (tmp_path / "harm").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "text", "list", "sparse", "expanded"])
def test_damaged_files(pickled: Path, damage: str) -> None:
    file = pickled / "pytorch_model.bin"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "text":
        file.write_text("no weights")
    else:
        eye = torch.eye(4)
        torch.save({"list": [eye], "sparse": {"a": eye.to_sparse()}, "expanded": {"a": torch.zeros(1).expand(1 << 40)}}[damage], file)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(pickled, allow_pickle=True)


def test_a_config_cannot_ask_for_it(pickled: Path) -> None:
    config = json.loads((pickled / "config.json").read_text())
    (pickled / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "pickled"}}))
    with pytest.raises(CheckpointError, match="a format that is not read"):
        open_checkpoint(pickled)
    with pytest.raises(CheckpointError, match="a format that is not read"):
        open_checkpoint(pickled, allow_pickle=True)


def test_other_verbs_take_the_flag_too(pickled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from octavo.cli import main

    for verb in (["inspect", str(pickled)], ["generate", str(pickled), "Once", "--max-tokens", "2", "--raw"]):
        assert main(verb) == 2 and "can run code when read" in capsys.readouterr().err
        assert main([*verb, "--allow-pickle"]) == 0
        capsys.readouterr()
