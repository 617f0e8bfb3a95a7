"""INT8 activations against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu.test_weights import SPECS, weight_of
from octavo import qtensor
from octavo.kernels.reference import round_activations
from octavo.kernels.triton.linear_int8 import inputs, multiply, step_of
from octavo.kernels.triton.tiles import Tile
from octavo.kernels.triton.weights import linear, prepare, unpacked
from octavo.schemes import TensorSpec

TOKEN, STATIC = TensorSpec("int8", "token", dynamic=True), TensorSpec("int8", "tensor")
GROUPS = {size: TensorSpec("int8", "group", size, dynamic=True) for size in (32, 64, 128)}
NAMES = ["int8 channel", "int8 tensor", "int8 g32", "int8 g128 zeros bf16", "int8 block", "int5 g32 zeros", "int4 channel", "int4 g128", "int4 g64 zeros",
         "int4 g32", "int4 g32 zeros", "int3 g64", "int2 g64"]


def expected(x: torch.Tensor, weight: object, spec: TensorSpec, scale: float = 0.0) -> np.ndarray:
    given = round_activations(x.numpy().astype(np.float64), spec, scale)
    return given @ unpacked(weight).numpy().astype(np.float64).T  # type: ignore[arg-type]


def close(y: torch.Tensor, wanted: np.ndarray) -> None:
    assert np.abs(y.numpy() - wanted).max() <= 3e-6 * max(np.abs(wanted).max(), 1e-30) * 8


@pytest.mark.parametrize(("name", "group"), [*((name, 0) for name in NAMES), *zip(NAMES, [128, 32, 64, 128] * 4, strict=False)])
def test_against_float64(name: str, group: int) -> None:
    """With a scale per token, and with groups of one size each; all of them: check_products.py."""
    spec = GROUPS[group] if group else TOKEN
    for seed, (n, k, rows) in enumerate(((33, 200, 3), (1, 1, 1)) if name == "int4 channel" else ((33, 200, 3),)):
        _, weight = weight_of(name, n, k, seed, spec)
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, k)).astype(np.float32))
        close(linear(x, [weight])[0], expected(x, weight, spec))


def test_split_k_company_and_rows_that_are_no_numbers() -> None:
    for name, spec in (("int8 channel", TOKEN), ("int4 g128", GROUPS[128]), ("int4 g32 zeros", TOKEN)):
        _, weight = weight_of(name, 40, 320, 0, spec)
        x = torch.randn(9, 320)
        tile = Tile(32, 16, step_of(weight), 4, 4, 2)
        y = multiply(inputs(x, weight), weight, tile=tile)
        close(y, expected(x, weight, spec))
        x[4, 5], x[6, 300] = float("nan"), float("-inf")
        z = multiply(inputs(x, weight), weight, tile=tile)
        sound = [0, 1, 2, 3, 5, 7, 8]
        assert torch.isnan(z[[4, 6]]).all() and torch.equal(z[sound], y[sound])
        assert torch.equal(linear(x[:3], [weight])[0], linear(x, [weight])[0][:3])


def test_static_scales() -> None:
    q = qtensor.quantize(np.random.default_rng(0).standard_normal((24, 128)).astype(np.float32), SPECS["int8 channel"])
    weight = prepare(q, STATIC, 0.02)
    x = torch.randn(5, 128) * 2  # some beyond 127 steps
    close(linear(x, [weight], [torch.ones(24)])[0] - 1, expected(x, weight, STATIC, 0.02))


def test_extremes_do_not_overflow() -> None:
    k = 4096
    for code in (-128, 127):
        q = qtensor.QTensor(np.full((8, k), code, np.int8), np.ones((8, 1), np.float32), SPECS["int8 channel"], (8, k))
        y = linear(torch.ones(2, k), [prepare(q, TOKEN)])[0]
        np.testing.assert_allclose(y.numpy(), float(code) * k, rtol=1e-6)
    weight = prepare(qtensor.quantize(np.ones((8, 64), np.float32), SPECS["int8 channel"]), TOKEN)
    assert not linear(torch.zeros(2, 64), [weight])[0].any()
