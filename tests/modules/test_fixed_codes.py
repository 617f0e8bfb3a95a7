"""Inputs with one scale that is known beforehand: the codes are the reference's, bit for bit; linears of the same inputs share them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from octavo import _native, layouts, modules, qtensor, schemes
from octavo.kernels.native import NativeWeight, native_weight
from octavo.kernels.reference import fixed_codes
from octavo.kernels.rows import RowsOps

ISAS = _native.available_isas()
WHOLE = 1 << 24


def packed(values: np.ndarray) -> layouts.Packed:
    return layouts.pack(qtensor.quantize(values.astype(np.float32), schemes.parse("W8").weight))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows,k", [(1, 70), (5, 64), (9, 200), (30, 384)])
@pytest.mark.parametrize("scale,zero", [(0.02, 0), (0.017, -100)])
def test_codes_are_those_of_the_reference(isa: str, rows: int, k: int, scale: float, zero: int) -> None:
    random = np.random.default_rng(rows + k)
    x = (random.normal(size=(rows, k)) * 2).astype(np.float32)
    x[0, :3] = 0.5 * scale, 1.5 * scale, 1e6
    factors = np.exp(random.normal(size=k)).astype(np.float32)
    panels = packed(np.eye(k))  # each output is one code times the scale
    for given in (None, factors):
        y = np.empty((rows, k), np.float32)
        _native.Immediate(_native.Team(2), isa).linear(native_weight(panels.blob, panels.meta), x, None, y, WHOLE, scale, zero, factors=given)
        np.testing.assert_array_equal(np.rint(y / np.float32(scale)), fixed_codes(x, scale, zero, given))


@pytest.mark.parametrize("isa", ISAS)
def test_any_number_of_rows_alone_and_in_a_program(isa: str) -> None:
    k, n, fixed = 448, 96, (0.03, 7)  # more than one chunk of k
    random = np.random.default_rng(0)
    panels = replace(packed(random.normal(size=(n, k))), factors=np.exp(random.normal(size=k) * 0.3).astype(np.float32))
    x = random.normal(size=(19, k)).astype(np.float32)
    handle, weight = native_weight(panels.blob, panels.meta), NativeWeight(panels, group=WHOLE, fixed=fixed)
    y = np.empty((len(x), n), np.float32)
    for row in range(len(x)):
        _native.Immediate(_native.Team(1), isa).linear(handle, x[row : row + 1], None, y[row : row + 1], WHOLE, *fixed, factors=panels.factors)
    program = RowsOps(threads=2, isa=isa).capture_rows(k, lambda ops, v: ops.linear(v, [weight])[0])
    for rows in range(1, len(x) + 1):
        np.testing.assert_array_equal(program.run(x[:rows], np.array([0, rows], np.int32)), y[:rows])
    assert len(program.describe(rows=5)) == 1  # the factors cost no op


def test_factors_go_with_a_fixed_scale() -> None:
    panels = packed(np.eye(64))
    handle, x = native_weight(panels.blob, panels.meta), np.zeros((2, 64), np.float32)
    for scale, factors in ((0.0, np.ones(64, np.float32)), (0.1, np.ones(63, np.float32))):
        with pytest.raises(ValueError, match="factors"):
            _native.Immediate(_native.Team(1)).linear(handle, x, None, np.empty_like(x), WHOLE, scale, 0, factors=factors)


def test_linears_of_the_same_inputs_share_their_codes() -> None:
    torch.manual_seed(0)

    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.after = torch.nn.Linear(64, 32), torch.nn.Linear(64, 48), torch.nn.Linear(48, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.after(torch.relu(self.two(x))) + self.one(x)[..., :16]
            return y

    net, x = Heads(), torch.randn(200, 64) * torch.linspace(0.1, 4, 64)
    quantized: Any = modules.quantize(net, "W8A8tsz", data=[x])
    one, two, after = quantized.one, quantized.two, quantized.after
    assert torch.equal(one.weight.factors, two.weight.factors) and one.weight.inputs == two.weight.inputs
    assert (one.weight.factors < 1).any() and after.weight.factors.shape != one.weight.factors.shape
    truth = net(x)
    assert (quantized(x) - truth).norm() < 0.02 * truth.norm()
