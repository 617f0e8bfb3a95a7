"""Activations rounded by the kernels, against qtensor.quantize, code by code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo import formats, qtensor
from octavo.kernels.triton.rows import normed, rounded, rounded_sums, span_sums
from octavo.schemes import TensorSpec


def spec_of(format: str, group: int) -> TensorSpec:
    return TensorSpec(format, "group", group, dynamic=True) if group else TensorSpec(format, "token", dynamic=True)


def hostile(rows: int, k: int) -> np.ndarray:
    """Rows of every size; one of zeros, one of ties."""
    rng = np.random.default_rng(k)
    x = rng.standard_normal((rows, k)) * 10.0 ** rng.integers(-9, 9, (rows, 1))
    x[0], x[1] = 0, np.arange(k) % 9 * 0.5
    return x.astype(np.float32)


@pytest.mark.parametrize("format", ["int8", "fp8e4m3"])
@pytest.mark.parametrize("group", [0, 32, 48, 128])
@pytest.mark.parametrize("k", [1, 100, 384])
def test_codes_and_scales_are_those_of_quantize(format: str, group: int, k: int) -> None:
    x = hostile(5, k)
    got = rounded(torch.from_numpy(x), format, group)
    expected = qtensor.quantize(x, spec_of(format, group))
    codes = np.asarray(got.codes)
    assert np.array_equal(got.scales.numpy().T, np.asarray(expected.scales))
    decode = formats.get(format).decode
    assert np.array_equal(decode(codes), decode(expected.codes))


def test_runs_that_are_no_numbers_say_so() -> None:
    x = torch.randn(4, 256)
    x[1, 200], x[3, 3] = float("inf"), float("nan")
    for format in ("int8", "fp8e4m3"):
        got = rounded(x, format, 128)
        assert torch.isnan(got.scales).T.tolist() == [[False, False], [False, True], [False, False], [True, False]]
        assert not got.codes[1, 128:].any() and got.codes[1, :128].any()


def test_static_scales_end_at_127() -> None:
    got = rounded(torch.tensor([[0.0, 0.05, -0.149, 50.0, -50.0]]), "int8", fixed=0.1)
    assert got.codes.tolist() == [[0, 0, -1, 127, -127]] and got.scales.tolist() == [[pytest.approx(0.1)]]


@pytest.mark.parametrize("format", ["int8", "fp8e4m3"])
@pytest.mark.parametrize("group", [0, 64])
def test_right_after_the_norm(format: str, group: int) -> None:
    x = torch.from_numpy(hostile(4, 200))
    gain = torch.randn(200)
    y = torch.empty(4, 200)
    got = normed(x, gain, 1e-5, format, group, offset=1.0, y=y)
    x64 = x.numpy().astype(np.float64)
    expected = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 1e-5) * (1 + gain.numpy().astype(np.float64))
    np.testing.assert_allclose(y.numpy(), expected, rtol=2e-6, atol=1e-9)
    alone = rounded(y, format, group)
    assert torch.equal(got.codes, alone.codes) and torch.equal(got.scales, alone.scales)
    half = torch.empty(4, 200, dtype=torch.bfloat16)
    normed(x, gain, 1e-5, format, group, offset=1.0, y=half)
    assert torch.equal(half, y.to(torch.bfloat16))
    x[2, 7] = float("nan")
    assert torch.isnan(normed(x, gain, 1e-5, format, group).scales).any(dim=0).tolist() == [False, False, True, False]


def test_sums_of_runs() -> None:
    x = torch.randn(3, 300)
    b = x.to(torch.bfloat16).to(torch.float64)
    for span in (32, 128, 300):
        parts = torch.stack([part.sum(dim=1) for part in b.split(span, dim=1)], dim=1)
        np.testing.assert_allclose(span_sums(x, span).numpy(), parts.numpy(), atol=1e-5)
        for format in ("int8", "fp8e4m3"):
            given = rounded(x, format, 128)
            scales = given.scales.T.repeat_interleave(128, dim=1)[:, :300].numpy()
            values = formats.get(format).decode(given.codes.numpy()) * scales
            parts = torch.stack([part.sum(dim=1) for part in torch.from_numpy(values).split(span, dim=1)], dim=1)
            np.testing.assert_allclose(rounded_sums(given, span).numpy(), parts.numpy(), atol=1e-4)
