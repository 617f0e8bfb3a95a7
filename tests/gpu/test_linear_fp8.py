"""FP8 activations against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu.test_weights import SPECS, weight_of
from octavo import qtensor
from octavo.kernels.op import Problem
from octavo.kernels.reference import round_activations
from octavo.kernels.triton import linear_fp8_wide
from octavo.kernels.triton.linear_fp8 import constants, inputs, multiply, plan, step_of, supports
from octavo.kernels.triton.linear_fp8_wide import fits
from octavo.kernels.triton.tiles import INTERPRETER, Tile
from octavo.kernels.triton.weights import linear, prepare, unpacked
from octavo.schemes import TensorSpec

TOKEN = TensorSpec("fp8e4m3", "token", dynamic=True)
GROUP = TensorSpec("fp8e4m3", "group", 128, dynamic=True)
NAMES = ["fp8e4m3 channel", "fp8e4m3 block", "int4 channel", "int4 g128", "int4 g64 zeros", "int4 g32 zeros", "int3 g64", "mxfp4"]


def expected(x: torch.Tensor, weight: object, spec: TensorSpec) -> np.ndarray:
    return round_activations(x.numpy().astype(np.float64), spec) @ unpacked(weight).numpy().astype(np.float64).T  # type: ignore[arg-type]


def close(y: torch.Tensor, wanted: np.ndarray) -> None:
    assert np.abs(y.numpy() - wanted).max() <= 2e-5 * max(np.abs(wanted).max(), 1e-30)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", [TOKEN, GROUP], ids=["token", "g128"])
def test_against_float64(name: str, spec: TensorSpec) -> None:
    for seed, (n, k, rows) in enumerate(((70, 200, 3),)):
        _, weight = weight_of(name, n, k, seed, spec)
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, k)).astype(np.float32))
        close(linear(x, [weight])[0], expected(x, weight, spec))


def test_a_tile_within_a_block_has_one_scale() -> None:
    rng = np.random.default_rng(2)
    q = qtensor.quantize((rng.standard_normal((200, 256)) * np.exp(rng.standard_normal((200, 1)))).astype(np.float32), SPECS["fp8e4m3 block"])
    weight = prepare(q, GROUP)
    x = torch.randn(7, 256)
    for high, alike in ((64, True), (128, True), (256, False)):
        tile = Tile(high, 16, 128, 2, 4, 2)
        assert constants(weight, 128, tile)["ALIKE"] is alike
        close(multiply(inputs(x, weight), weight, tile=tile), expected(x, weight, GROUP))


@pytest.mark.parametrize(("name", "rows", "halves"), [("fp8e4m3 channel", 66, 1), ("fp8e4m3 block", 130, 2)])
def test_many_rows_by_the_copy_engine(name: str, rows: int, halves: int) -> None:
    spec = GROUP if "block" in name else TOKEN
    weight = weight_of(name, 40, 144, 3, spec)[1]
    bias, residual = torch.randn(40), torch.randn(rows, 40)
    assert fits(weight, rows, INTERPRETER) and linear_fp8_wide.plan(weight, rows, 128, INTERPRETER)[1] == halves
    x = torch.randn(rows, 144)
    x[5, 140] = float("nan")
    y = linear(x, [weight], [bias], residual)[0] - bias - residual
    sound = [row for row in range(rows) if row != 5]
    assert torch.isnan(y[5]).all()
    close(y[sound], expected(x[sound], weight, spec))
    narrow = multiply(inputs(x[:16], weight), weight, bias, residual[:16], Tile(64, 128, 128, 1, 4, 2)) - bias - residual[:16]
    np.testing.assert_allclose(y[sound[:15]].numpy(), narrow[sound[:15]].numpy(), atol=1e-5 * float(narrow[sound[:15]].abs().max()))
    assert not fits(weight, 64, INTERPRETER) and not fits(weight_of(name, 8, 200, 0, spec)[1], 300, INTERPRETER)


def test_split_k_company_and_rows_that_are_no_numbers() -> None:
    for name, spec in (("fp8e4m3 block", GROUP), ("int4 g32 zeros", TOKEN)):
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


def test_zeros_and_large_numbers() -> None:
    weight = weight_of("fp8e4m3 channel", 24, 128, 0, TOKEN)[1]
    assert not linear(torch.zeros(3, 128), [weight])[0].any()
    x = torch.randn(3, 128) * 1e30
    close(linear(x, [weight])[0], expected(x, weight, TOKEN))


def test_only_gpus_that_have_fp8_multiply_it() -> None:
    problem = Problem("linear", 8, 128, weight=SPECS["fp8e4m3 channel"], activation=TOKEN)
    assert supports(problem, (9, 0)) is None and "Ada" in str(supports(problem, (8, 0)))
    assert plan(weight_of("fp8e4m3 block", 4, 128, 0, GROUP)[1], 4096, INTERPRETER).k == 128
