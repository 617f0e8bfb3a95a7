"""Saved modules come back to the bit, into a skeleton without numbers; files that are damaged or foreign are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import octavo
from octavo.errors import CheckpointError, UsageError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 24)
        self.lstm = nn.LSTM(24, 16, batch_first=True, bidirectional=True)
        self.conv = nn.Conv1d(32, 12, 3, groups=2)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 5, bias=False)
        self.again = self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.lstm(self.table(ids))[0].transpose(1, 2)
        return self.again(self.norm(self.conv(x)).mean(2))


@pytest.fixture()
def saved(tmp_path: Path) -> tuple[Any, Path, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, 30, (4, 9))
    net = Net().eval()
    quantized = octavo.quantize(net, "W8A8tsz; head.weight=W4g32A16", data=[ids], bias_correction=True)
    octavo.save_module(quantized, tmp_path)
    return quantized, tmp_path / "module.safetensors", ids


def test_the_same_bits_come_back(saved: tuple[Any, Path, torch.Tensor]) -> None:
    quantized, file, ids = saved
    for device in ("cpu", "meta"):
        with torch.device(device):
            skeleton = Net()
        loaded = octavo.load_module(file.parent, skeleton)
        assert torch.equal(loaded(ids), quantized(ids)) and loaded.head is loaded.again
    with safe_open(file, "pt") as opened:  # plain: numbers and a description
        assert "table.weight.panels" in opened.keys() and "again.weight.panels" not in opened.keys()  # noqa: SIM118
        assert json.loads(opened.metadata()["octavo.modules"])["layers"]["head"]["scheme"].startswith("W4g32")


def test_files_that_do_not_fit_are_refused(saved: tuple[Any, Path, torch.Tensor], tmp_path: Path) -> None:
    _, file, _ = saved
    for other in (nn.Sequential(nn.Linear(3, 3)), nn.LSTM(3, 3)):
        with pytest.raises(CheckpointError, match="architecture"):
            octavo.load_module(file, other)
    with pytest.raises(CheckpointError, match="no such file"):
        octavo.load_module(tmp_path / "elsewhere", Net())
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        octavo.load_module(cut, Net())
    plain = tmp_path / "plain.safetensors"
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, plain)
    with pytest.raises(CheckpointError, match="not written by"):
        octavo.load_module(plain, Net())
    with pytest.raises(UsageError, match="no quantized layers"):
        octavo.save_module(Net(), tmp_path)


def test_a_description_that_was_tampered_with_is_refused(saved: tuple[Any, Path, torch.Tensor], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _, file, _ = saved
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["octavo.modules"])
    tensors = load_file(file)

    def changed(change: Any) -> Path:
        copy = json.loads(json.dumps(header))
        change(copy["layers"]["head"]["weights"]["weight"]["meta"])
        path = tmp_path / "changed.safetensors"
        save_file(tensors, path, {"octavo.modules": json.dumps(copy)})
        return path

    for change in (lambda m: m.update(n=4000), lambda m: m.update(kpad=1), lambda m: m.update(store="f32"), lambda m: m.pop("group")):
        with pytest.raises(CheckpointError):
            octavo.load_module(changed(change), Net())
