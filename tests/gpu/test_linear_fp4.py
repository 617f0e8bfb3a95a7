"""FP4 activations against float64, as if the interpreter were a GPU that has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu.test_weights import weight_of
from octavo import formats, qtensor, schemes
from octavo.kernels.triton import weights
from octavo.kernels.triton.linear_fp4 import inputs, multiply, rounded
from octavo.kernels.triton.tiles import Gpu, Tile
from octavo.kernels.triton.weights import GpuWeight, linear, unpacked

SPECS = {name: schemes.parse(f"W{name}A{name}").activation for name in ("nvfp4", "mxfp4")}


@pytest.fixture(autouse=True)
def blackwell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "gpu", lambda device: Gpu(4, 227 * 1024, (10, 0)))


def by_row(x: torch.Tensor, name: str) -> np.ndarray:
    """What each row alone is rounded to."""
    return np.concatenate([qtensor.quantize(row[None], SPECS[name]).dequantize() for row in x.numpy()]).astype(np.float64)


def rows_of(count: int, k: int) -> torch.Tensor:
    x = np.random.default_rng(k).standard_normal((count, k)) * 10.0 ** np.random.default_rng(count).integers(-4, 5, (count, 1))
    return torch.from_numpy(x.astype(np.float32))


def product(x: torch.Tensor, weight: GpuWeight, name: str) -> np.ndarray:
    return np.asarray(by_row(x, name) @ unpacked(weight).numpy().astype(np.float64).T)


def close(y: torch.Tensor, wanted: np.ndarray) -> None:
    assert (np.abs(y.numpy() - wanted) <= 2e-5 * np.abs(wanted).max(axis=1, keepdims=True) + 1e-30).all()


@pytest.mark.parametrize("name", list(SPECS))
def test_rows_are_rounded_as_quantize_does(name: str) -> None:
    for k in (1, 70, 200):
        x = rows_of(5, k)
        x[1] = 0
        x[2] = torch.arange(k) % 13 * 0.25  # ties
        got = rounded(x, name)
        values = formats.get(name).decode(torch.stack([got.codes & 15, got.codes >> 4], dim=2).reshape(5, -1)[:, :k].numpy())
        scales = got.scales.T.numpy()
        sizes = formats.get("fp8e4m3" if name == "nvfp4" else "e8m0").decode(scales).astype(np.float32) * got.outers.numpy()[:, None]
        group = 16 if name == "nvfp4" else 32
        np.testing.assert_allclose(values * np.repeat(sizes, group, axis=1)[:, :k], by_row(x, name), rtol=1e-6)


@pytest.mark.parametrize("name", list(SPECS))
def test_against_float64(name: str) -> None:
    for n, k, rows in ((40, 200, 3), (7, 16, 1), (33, 320, 17)):
        weight = weight_of(name, n, k, 0, SPECS[name])[1]
        assert weight.kind == "pairs" and weight.nbytes < n * (k + 64)
        np.testing.assert_allclose(unpacked(weight).numpy(), weight_of(name, n, k)[0].dequantize(), rtol=1e-6)
        x = rows_of(rows, k)
        close(linear(x, [weight])[0], product(x, weight, name))


@pytest.mark.parametrize("name", list(SPECS))
def test_split_k_company_and_rows_that_are_no_numbers(name: str) -> None:
    weight = weight_of(name, 40, 640, 0, SPECS[name])[1]
    x = rows_of(9, 640)
    bias, tile = torch.randn(40), Tile(32, 16, 128, 4, 4, 2)
    y = multiply(inputs(x, weight), weight, tile=tile)
    close(y, product(x, weight, name))
    assert torch.equal(multiply(inputs(x[:2], weight), weight, bias, tile=tile), y[:2] + bias)
    x[4, 5], x[6, 300] = float("nan"), float("-inf")
    z = multiply(inputs(x, weight), weight, tile=tile)
    sound = [0, 1, 2, 3, 5, 7, 8]
    assert torch.isnan(z[[4, 6]]).all() and torch.equal(z[sound], y[sound])
    assert linear(x[:0], [weight])[0].shape == (0, 40)
