"""The kernels that modules need beside linears, against float64, on every instruction set of this machine."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from octavo import _native, layouts, qtensor, schemes
from octavo.kernels.native import Constant, native_weight
from octavo.kernels.rows import ACTIVATIONS, RowsOps

ISAS = _native.available_isas()
WHOLE = 1 << 24


def packed(n: int, k: int, scheme: str = "W8", seed: int = 0) -> tuple[object, np.ndarray]:
    values = np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)
    tensor = qtensor.quantize(values, schemes.parse(scheme).weight)
    panels = layouts.pack(tensor)
    return native_weight(panels.blob, panels.meta), np.asarray(tensor.dequantize(), np.float64)


def fixed_linear(isa: str, x: np.ndarray, n: int, scale: float, zero: int, threads: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(what the kernel gives, what float64 gives from the same codes)"""
    handle, weight = packed(n, x.shape[1])
    y = np.empty((len(x), n), np.float32)
    _native.Immediate(_native.Team(threads), isa).linear(handle, x, None, y, WHOLE, scale, zero)
    inverse = np.float32(1) / np.float32(scale)
    with np.errstate(over="ignore", invalid="ignore"):
        codes = np.clip(np.round(x * inverse) + zero, -127, 127).astype(np.float64)
    return y, scale * codes @ weight.T


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows,k,n", [(1, 64, 16), (1, 70, 5), (7, 384, 48), (13, 1000, 33), (64, 513, 130)])
@pytest.mark.parametrize("scale,zero", [(0.02, 0), (0.05, -100), (0.001, 127)])
def test_fixed_scales_against_float64(isa: str, rows: int, k: int, n: int, scale: float, zero: int) -> None:
    x = np.random.default_rng(rows + k).normal(size=(rows, k)).astype(np.float32)
    y, truth = fixed_linear(isa, x, n, np.float32(scale), zero)
    np.testing.assert_allclose(y, truth, rtol=2e-5, atol=2e-5 * np.abs(truth).max())


@pytest.mark.parametrize("isa", ISAS)
def test_fixed_scales_clip_extremes_and_keep_nan_in_its_row(isa: str) -> None:
    x = np.random.default_rng(0).normal(size=(4, 100)).astype(np.float32)
    x[0, 3], x[1, 5], x[2] = 3e38, np.nan, 0
    y, truth = fixed_linear(isa, x, 20, np.float32(0.03), 0)
    assert np.isnan(y[1]).all() and (y[2] == 0).all()
    np.testing.assert_allclose(y[[0, 3]], truth[[0, 3]], rtol=2e-5, atol=1e-3)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_have_the_same_bits_alone_and_on_any_number_of_threads(isa: str) -> None:
    x = np.random.default_rng(1).normal(size=(200, 384)).astype(np.float32)
    whole, _ = fixed_linear(isa, x, 96, np.float32(0.03), 7)
    for first, count in [(0, 1), (5, 6), (50, 130)]:
        np.testing.assert_array_equal(whole[first : first + count], fixed_linear(isa, x[first : first + count], 96, np.float32(0.03), 7, 1)[0])


def run(isa: str, x: np.ndarray, starts: list[int], describe: object) -> np.ndarray:
    return RowsOps(threads=2, isa=isa).capture_rows(x.shape[1], describe).run(x, np.array(starts, np.int32))  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(isa: str, kind: str) -> None:
    x = np.concatenate([np.linspace(-30, 30, 500), [0.0, -0.0, 1e-20, -1e-20, 1e30, -1e30, 88, -88, 3, 4, 5, 6]]).astype(np.float32)[None]
    y = run(isa, x, [0, 1], lambda ops, v: ops.activate(kind, v))[0]
    v = x[0].astype(np.float64)
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-v))
        truth = {"silu": v * sigmoid, "gelu": v * 0.5 * np.array([math.erfc(-t / math.sqrt(2)) for t in v]), "relu": np.maximum(v, 0), "tanh": np.tanh(v),
                 "sigmoid": sigmoid, "gelu_tanh": 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))}[kind]
    np.testing.assert_allclose(y, truth, rtol=3e-6, atol=3e-6)
    odd = run(isa, np.array([[np.nan, np.inf]], np.float32), [0, 1], lambda ops, t: ops.activate(kind, t))[0]
    assert np.isnan(odd[0]) and odd[1] == (1 if kind in ("tanh", "sigmoid") else np.inf)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 16, 37, 384])
def test_layer_norm(isa: str, width: int) -> None:
    random = np.random.default_rng(width)
    x = (random.normal(size=(5, width)) * 3 + 100).astype(np.float32)  # a mean far from zero costs no digits
    gain, bias = random.normal(size=(2, width)).astype(np.float32)
    y = run(isa, x, [0, 5], lambda ops, v: ops.layer_norm(v, Constant(gain), Constant(bias), 1e-5))
    v = x.astype(np.float64)
    truth = (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5) * gain + bias
    np.testing.assert_allclose(y, truth, atol=2e-4 if width > 1 else 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("heads,dim", [(1, 16), (3, 20), (12, 32)])
def test_attention_in_both_directions(isa: str, heads: int, dim: int) -> None:
    random = np.random.default_rng(dim)
    starts = [0, 1, 18, 51]
    x = random.normal(size=(51, heads * dim)).astype(np.float32)

    def describe(ops: RowsOps, v: object) -> object:
        return ops.mutual_attention(v, v, v, heads=heads, head_dim=dim, scale=dim**-0.5)  # type: ignore[arg-type]

    y = run(isa, x, starts, describe)
    for a, b in itertools.pairwise(starts):
        q = x[a:b].astype(np.float64).reshape(b - a, heads, dim).transpose(1, 0, 2)
        scores = q @ q.transpose(0, 2, 1) * dim**-0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        truth = (weights / weights.sum(-1, keepdims=True) @ q).transpose(1, 0, 2).reshape(b - a, -1)
        np.testing.assert_allclose(y[a:b], truth, atol=2e-5)
        np.testing.assert_array_equal(run(isa, x[a:b], [0, b - a], describe), y[a:b])  # company changes no bit


def test_what_a_program_over_rows_refuses() -> None:
    handle = RowsOps(threads=1).capture_rows(8, lambda ops, v: ops.activate("relu", v))
    x = np.zeros((3, 8), np.float32)
    for starts in ([0, 2], [1, 3], [0, 2, 2, 3], [0]):
        with pytest.raises(ValueError, match="starts"):
            handle.run(x, np.array(starts, np.int32))
    with pytest.raises(ValueError, match="shape"):
        handle.run(x[:, :4].copy(), np.array([0, 3], np.int32))


def test_ids_and_shapes_are_checked() -> None:
    handle, weight = packed(10, 24)
    now = _native.Immediate(_native.Team(1))
    y = np.empty((2, 24), np.float32)
    now.embed(handle, np.array([9, 0]), y)
    np.testing.assert_allclose(y, weight[[9, 0]], rtol=1e-6)
    for ids in ([10, 0], [-1, 0]):
        with pytest.raises(IndexError, match="no row"):
            now.embed(handle, np.array(ids), y)
    with pytest.raises(ValueError, match="shapes"):
        now.linear(handle, np.zeros((2, 23), np.float32), None, np.zeros((2, 10), np.float32))
    with pytest.raises(ValueError, match="fixed"):
        now.linear(handle, np.zeros((2, 24), np.float32), None, np.zeros((2, 10), np.float32), WHOLE, -1.0)
