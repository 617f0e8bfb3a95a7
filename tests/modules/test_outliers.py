"""Modules whose int8 inputs leave their largest values out (LLM.int8()): each kind of layer is nearer to the original than without."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo

KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(97, 200), (70, 97)),
    "convolution": (lambda: nn.Conv2d(7, 24, 3, padding=1), (3, 7, 12, 9)),
    "recurrent": (lambda: nn.LSTM(33, 40, batch_first=True), (3, 20, 33)),
}


def first(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_layer(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    module = make().eval()
    x = torch.randn(shape).clip(-4, 4)
    x[torch.rand(shape) < 0.01] *= 60
    split, plain = (octavo.quantize(copy.deepcopy(module), scheme) for scheme in ("LLM.int8()", "W8A8"))
    with torch.no_grad():
        exact, ours, without = first(module(x)), first(split(x)), first(plain(x))
        assert (ours - exact).norm() < 0.5 * (without - exact).norm()
        octavo.save_module(split, tmp_path)
        again: Any = octavo.load_module(tmp_path, make())
        assert torch.equal(first(again(x)), ours)
