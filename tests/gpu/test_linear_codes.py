"""Weight-only products against float64, every precision, with few rows and many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gpu.test_weights import SPECS, weight_of
from octavo import qtensor
from octavo.kernels.triton import linear_codes
from octavo.kernels.triton.linear_codes import inputs, mode_of, multiply, plan
from octavo.kernels.triton.tiles import INTERPRETER, Tile
from octavo.kernels.triton.weights import linear, prepare, unpacked
from octavo.schemes import TensorSpec

FLOATS = TensorSpec("fp32")


def close(y: torch.Tensor, x: torch.Tensor, weight: object, error: float = 3e-6) -> None:
    """y against the product in float64 of what the kernel multiplies; `error` by the sum of magnitudes."""
    values = unpacked(weight).numpy().astype(np.float64)  # type: ignore[arg-type]
    given = x.to(torch.float32).numpy().astype(np.float64)
    expected, size = given @ values.T, np.abs(given) @ np.abs(values).T
    assert y.shape == expected.shape and y.dtype == torch.float32
    assert (np.abs(y.numpy() - expected) <= error * size.max() + 1e-30).all(), np.abs(y.numpy() - expected).max() / size.max()


def error_of(weight: object, rows: int) -> float:
    """Scales that meet codes in registers are rounded once more where bfloat16 does not hold the product."""
    return 2.0**-9 if mode_of(weight, rows) in ("run", "each") and not weight.exact else 3e-6  # type: ignore[arg-type, attr-defined]


def rows_of(count: int, k: int, seed: int, exact: bool = False) -> torch.Tensor:
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, k)).astype(np.float32))
    return x if exact else x.to(torch.bfloat16).to(torch.float32)


@pytest.mark.parametrize("name", SPECS)
def test_against_float64(name: str) -> None:
    more = ((1, 1, 1), (20, 128, 17)) if name in ("int4 g64 zeros", "nvfp4", "fp8e4m3 block") else ()
    for seed, (n, k, rows) in enumerate(((33, 200, 3), *more)):
        _, weight = weight_of(name, n, k, seed)
        x = rows_of(rows, k, seed, exact=weight.kind == "fp32")
        close(linear(x, [weight])[0], x, weight, error_of(weight, rows))


def test_x_is_rounded_to_bfloat16() -> None:
    _, weight = weight_of("int4 g128", 40, 256)
    for rows in (2, 20):
        x = rows_of(rows, 256, 7, exact=True)
        y = linear(x, [weight])[0]
        close(y, x.to(torch.bfloat16), weight)
        assert torch.equal(y, linear(x.to(torch.bfloat16), [weight])[0])


@pytest.mark.parametrize("name", ["int4 g128", "int4 g64 zeros", "nvfp4"])
def test_split_k_gives_the_same_bits_every_time(name: str) -> None:
    _, weight = weight_of(name, 40, 640)
    x = rows_of(5, 640, 1)
    usual, _ = plan(weight, 5, INTERPRETER)
    bias, residual = torch.randn(40), torch.randn(5, 40)
    tile = Tile(32, 16, usual.k, 4, 4, 2)
    y = multiply(inputs(x, weight), weight, bias, residual, tile)
    close(y - bias - residual, x, weight, max(error_of(weight, 5), 1e-5))
    assert torch.equal(y, multiply(inputs(x, weight), weight, bias, residual, tile))
    assert not weight.counters.any()  # ready for the next product


@pytest.mark.parametrize("name", ["int4 g128", "mxfp4", "int8 channel"])
def test_a_row_does_not_know_its_company(name: str) -> None:
    _, weight = weight_of(name, 48, 320)
    x = rows_of(16, 320, 2)
    together = linear(x, [weight])[0]
    for rows in (1, 3, 11):
        assert torch.equal(linear(x[:rows], [weight])[0], together[:rows])


@pytest.mark.parametrize("name", ["int4 g128", "int4 g32 zeros", "nf4 g64", "nvfp4", "fp8e4m3 block", "bf16"])
def test_nan_and_infinity_stay_in_their_row(name: str) -> None:
    _, weight = weight_of(name, 20, 200)
    x = torch.ones(6, 200)
    x[1, 3], x[4, 199] = float("nan"), float("inf")
    y = linear(x, [weight])[0]
    assert torch.isnan(y[1]).all() and not torch.isfinite(y[4]).any() and torch.isfinite(y[[0, 2, 3, 5]]).all()


def test_zeros_and_extremes() -> None:
    for name in ("int4 g128", "mxfp4", "bf16"):
        zero = prepare(qtensor.quantize(np.zeros((19, 70), np.float32), SPECS[name]), FLOATS)
        assert not linear(torch.ones(3, 70), [zero])[0].any()
        assert not linear(torch.zeros(3, 70), [weight_of(name, 19, 70)[1]])[0].any()
    q = qtensor.QTensor(np.full((32, 1024), -8, np.int8), np.ones((32, 8), np.float32), SPECS["int4 g128"], (32, 1024))
    x = torch.full((5, 1024), 2.0)
    assert (linear(x, [prepare(q, FLOATS)])[0] == -16384.0).all()


def test_bias_residual_and_several_weights() -> None:
    weights = [weight_of(name, n, 128)[1] for name, n in (("int4 g128", 40), ("int4 g64 zeros", 8), ("int8 channel", 24))]
    x, bias = rows_of(4, 128, 3), torch.randn(8)
    plain = [linear(x, [w])[0] for w in weights]
    q, k, v = linear(x, weights, [None, bias, None])
    assert torch.equal(q, plain[0]) and torch.equal(k, plain[1] + bias) and torch.equal(v, plain[2])
    residual = torch.randn(4, 40)
    assert torch.equal(linear(x, weights[:1], residual=residual)[0], plain[0] + residual)
    assert linear(x[:0], weights)[1].shape == (0, 8)
    assert torch.equal(linear(x, weights[:1], narrow=True)[0], plain[0].to(torch.bfloat16))


def test_modes_are_those_that_the_page_describes() -> None:
    expected = {"int4 channel": "row", "int4 g128": "step", "int8 g32": "step", "int4 g32": "part", "int2 g16 zeros": "part", "nvfp4": "run", "int4 g4": "run",
                "int4 g96": "each", "fp8e5m2 g20": "each", "bf16": "row"}
    assert {name: mode_of(weight_of(name, 2, 256)[1], 1) for name in expected} == expected
    mx = weight_of("mxfp4", 2, 256)[1]
    assert (mode_of(mx, 1), mode_of(mx, 128)) == ("part", "run") and mode_of(replace(mx, scales=None), 1) == "row"


def test_both_ways_of_scaling_agree() -> None:
    _, weight = weight_of("mxfp4", 64, 256)
    x = rows_of(40, 256, 4)
    close(multiply(inputs(x, weight), weight), x, weight)                                     # run
    close(linear(x[:9], [weight])[0], x[:9], weight)                                          # part
    assert linear_codes.sums_span(weight, 9) == 0
