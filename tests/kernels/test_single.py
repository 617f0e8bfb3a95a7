"""Each native kernel alone against float64 NumPy: random numbers, zeros, extremes, NaN, odd widths, every instruction set.

A float32 embedding table feeds any rows we like into a program of one operation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from octavo import _native, qtensor
from octavo.cache import PAGE, KVPool, Step
from octavo.kernels.native import NativeOps
from octavo.schemes import TensorSpec

ISAS = _native.available_isas()
FP32 = TensorSpec("fp32")
CACHES = {"fp32": FP32, "bf16": TensorSpec("bf16"), "int8": TensorSpec("int8", "token", dynamic=True)}
WIDTHS = [1, 6, 15, 16, 17, 48, 130, 576]
Rows = np.ndarray

EXTREMES = np.array([0, -0.0, 1, -1, 1e-45, -1e-38, 1e-30, 0.09999, 0.1001, 5, -5, 20, -20, 87, -87, 88.5, -88.5, 104, -104, 1e4, -1e4,
                     1e19, -1e19, 3e38, -3e38], np.float32)


def step_of(rows: int, past: int = 0, tokens: Rows | None = None, pages: int = 1) -> Step:
    """One sequence on pages 0, 1, ...; token i is row i of the table unless said otherwise."""
    at = np.arange(past, past + rows, dtype=np.int32)
    ids = np.arange(rows, dtype=np.int32) if tokens is None else tokens.astype(np.int32)
    return Step(ids, at, at, np.array([0, rows], np.int32), np.array([past + rows], np.int32), np.arange(pages, dtype=np.int32)[None],
                np.arange(rows, dtype=np.int32))


def apply(x: Rows, op: Callable[[Any, Any], Any], isa: str, threads: int = 2) -> Rows:
    """op(ops, value of the rows x) -> value, on the native backend."""
    ops = NativeOps(threads, isa)
    table = ops.prepare(qtensor.QTensor(x, None, FP32, x.shape), FP32)
    program = ops.capture(lambda o: o.select(op(o, o.embed(table))))
    pages = -(-len(x) // PAGE)
    return np.array(program.run(step_of(len(x), pages=pages), KVPool(pages, [1], [1], FP32)))


def rows_of(width: int, seed: int = 0) -> Rows:
    """Random rows of several magnitudes, one of zeros, one with a NaN."""
    x = np.random.default_rng(seed).standard_normal((9, width)) * 10.0 ** np.arange(-6, 3)[:, None]
    x[3] = 0
    x[5, width // 2] = np.nan
    return x.astype(np.float32)


def agree(y: Rows, expected: Rows, relative: float, absolute: float = 1e-38) -> None:
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_allclose(y, expected, rtol=relative, atol=absolute)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("isa", ISAS)
def test_rms_norm(isa: str, width: int, groups: int) -> None:
    x, gain = rows_of(width * groups), np.random.default_rng(1).standard_normal(width).astype(np.float32)
    y = apply(x, lambda o, v: o.rms_norm(v, o.constant(gain), 1e-6, 1.0, groups), isa)
    parts = x.astype(np.float64).reshape(9, groups, width)
    expected = parts / np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-6) * (1.0 + gain.astype(np.float64))
    agree(y, expected.reshape(9, -1), 2e-6, 1e-9)


def activation(kind: str, x: Rows) -> Rows:
    from math import erf

    x = x.astype(np.float64)
    with np.errstate(all="ignore"):
        if kind == "silu":
            return x / (1 + np.exp(-x))
        inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + (np.tanh(inner) if kind == "gelu_tanh" else np.vectorize(erf)(x / np.sqrt(2))))


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize("isa", ISAS)
def test_gates(isa: str, kind: str) -> None:
    """To 2e-6 of the result; GELU's left tail, a difference of nearly equal numbers in float32, to 2e-7 of the input."""
    for x in (rows_of(130), EXTREMES[None], np.linspace(-90, 90, 9000, dtype=np.float32).reshape(9, -1)):
        y = apply(x, lambda o, v: o.gate(kind, v, v), isa).astype(np.float64)
        expected = activation(kind, x) * x.astype(np.float64)
        with np.errstate(over="ignore"):
            finite = np.isnan(expected) | (np.abs(expected) < 3e38)
        bound = 2e-6 * np.abs(expected) + (0 if kind == "silu" else 2e-7 * np.abs(x.astype(np.float64)) ** 2) + 1e-30
        np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
        assert np.all((np.abs(y - expected) <= bound)[finite & ~np.isnan(expected)])
        assert np.all(np.isinf(y[~finite]))


@pytest.mark.parametrize("isa", ISAS)
def test_the_exponential_is_exact_to_two_ulp(isa: str) -> None:
    """exp(-x) for x > 17 is what silu(-x) / -x leaves, to one rounding each of the division and the product."""
    x = -np.random.default_rng(2).uniform(17, 86, (40, 250)).astype(np.float32)
    ones = np.ones((40, 250), np.float32)
    both = np.concatenate([x, ones], axis=1)

    def op(o: Any, v: Any) -> Any:
        take = [o.prepare(qtensor.quantize(np.eye(500, dtype=np.float32)[i : i + 250], FP32), FP32) for i in (0, 250)]
        a, b = o.linear(v, take)
        return o.gate("silu", a, b)

    y = apply(both, op, isa).astype(np.float64)
    expected = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    assert (np.abs(y - expected) / ulp).max() <= 4


@pytest.mark.parametrize("isa", ISAS)
def test_softcap(isa: str) -> None:
    for x in (rows_of(130), EXTREMES[None], np.linspace(-200, 200, 9000, dtype=np.float32).reshape(9, -1)):
        agree(apply(x, lambda o, v: o.softcap(v, 30.0), isa), 30 * np.tanh(x.astype(np.float64) / 30), 2e-6, 1e-38)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("isa", ISAS)
def test_add_and_scaled_embedding(isa: str, width: int) -> None:
    x = rows_of(width)
    np.testing.assert_array_equal(apply(x, lambda o, v: o.add(v, v), isa), x + x)
    ops = NativeOps(1, isa)
    table = ops.prepare(qtensor.QTensor(x, None, FP32, x.shape), FP32)
    program = ops.capture(lambda o: o.select(o.embed(table, 1.5)))
    np.testing.assert_array_equal(program.run(step_of(3, tokens=np.array([8, 0, 8])), KVPool(1, [1], [1], FP32)), x[[8, 0, 8]] * np.float32(1.5))


@pytest.mark.parametrize("heads,dim,rotary", [(1, 2, 2), (3, 6, 6), (2, 80, 20), (4, 64, 64), (1, 256, 128)])
@pytest.mark.parametrize("isa", ISAS)
def test_rope(isa: str, heads: int, dim: int, rotary: int) -> None:
    x = rows_of(heads * dim)
    angles = np.arange(9)[:, None] * 3.0 ** -np.arange(rotary // 2)
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    y = apply(x, lambda o, v: o.rope(v, o.constant(table), heads, dim, rotary), isa)
    parts, wide, half = x.astype(np.float64).reshape(9, heads, dim), table.astype(np.float64)[:, None], rotary // 2
    a, b, cos, sin = parts[..., :half], parts[..., half:rotary], wide[..., :half], wide[..., half:]
    expected = np.concatenate([a * cos - b * sin, b * cos + a * sin, parts[..., rotary:]], axis=-1).reshape(9, -1)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    assert np.nanmax(np.abs(y - expected) / np.maximum(np.nanmax(np.abs(x), axis=1, keepdims=True), 1e-30)) <= 3e-7


@pytest.mark.parametrize("cache", list(CACHES))
@pytest.mark.parametrize("heads,dim", [(3, 6), (1, 24), (2, 80)])
@pytest.mark.parametrize("isa", ISAS)
def test_what_the_cache_stores(isa: str, heads: int, dim: int, cache: str) -> None:
    """BF16 rounds to nearest even, bit for bit as ml_dtypes; INT8 is absmax / 127 per token and head; NaN is never lost."""
    x = rows_of(heads * dim)
    x[7, 0], x[8, -1] = np.inf, np.float32(3.4e38)
    ops = NativeOps(2, isa)
    table = ops.prepare(qtensor.QTensor(x, None, FP32, x.shape), FP32)
    program = ops.capture(lambda o: (lambda v: o.select(o.attention(v, v, v, 0, heads=heads, kv_heads=heads, head_dim=dim, scale=1.0)))(o.embed(table)))
    pool = KVPool(1, [heads], [dim], CACHES[cache])
    program.run(step_of(9), pool)
    parts = x.reshape(9, heads, dim).transpose(1, 0, 2)  # [heads, tokens, dim]
    keys, values = pool.k[0][0].transpose(0, 2, 1)[:, :9], pool.v[0][0][:, :9]
    if cache == "fp32":
        np.testing.assert_array_equal(keys, parts)
        np.testing.assert_array_equal(values, parts)
    elif cache == "bf16":
        rounded = parts.astype(ml_dtypes.bfloat16)
        for got in (keys, values):
            np.testing.assert_array_equal(got.view(ml_dtypes.bfloat16).astype(np.float32), rounded.astype(np.float32))
    else:
        for got, scales in ((keys, pool.k_scale[0][0][:, :9]), (values, pool.v_scale[0][0][:, :9])):
            with np.errstate(invalid="ignore"):
                back = got.astype(np.float32) * scales[..., None]
            bad = ~np.isfinite(parts).all(-1)
            assert np.all(~np.isfinite(back[bad]).all(-1))
            top = np.abs(parts[~bad]).max(-1)
            np.testing.assert_array_equal(scales[~bad], top / np.float32(127))
            assert np.all(np.abs(back[~bad] - parts[~bad]) <= top[:, None] * 0.5001 / 127)


def attention(x: Rows, heads: int, kv_heads: int, dim: int, scale: float, window: int, softcap: float) -> Rows:
    """Float64, one softmax over all visible tokens."""
    n, x = len(x), x.astype(np.float64)
    q, k, v = np.split(x, [heads * dim, (heads + kv_heads) * dim], axis=1)
    q, k, v = (a.reshape(n, -1, dim).transpose(1, 0, 2) for a in (q, k, v))
    k, v = (np.repeat(a, heads // kv_heads, axis=0) for a in (k, v))
    s = q @ k.transpose(0, 2, 1) * scale
    s = softcap * np.tanh(s / softcap) if softcap else s
    ages = np.arange(n)[:, None] - np.arange(n)
    s = np.where((ages >= 0) & ((ages < window) | (window == 0)), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return ((p / p.sum(-1, keepdims=True)) @ v).transpose(1, 0, 2).reshape(n, -1)


@pytest.mark.parametrize("heads,kv_heads,dim,scale,window,softcap", [
    (1, 1, 8, 0.3, 0, 0), (3, 1, 6, 0.4, 0, 0), (4, 2, 24, 0.2, 33, 0), (9, 3, 64, 0.125, 0, 0), (60, 1, 16, 0.25, 0, 0), (5, 1, 80, 0.1, 1, 0),
    (2, 2, 136, 0.08, 100, 5.0), (1, 1, 256, 0.06, 0, 50.0), (4, 2, 16, 300.0, 0, 0), (4, 2, 16, 0.0, 0, 0)])
@pytest.mark.parametrize("isa", ISAS)
def test_attention(isa: str, heads: int, kv_heads: int, dim: int, scale: float, window: int, softcap: float) -> None:
    """200 tokens in one go and in chunks; scale 300 makes the softmax pick one token, scale 0 the mean of all."""
    n, width = 200, (heads + 2 * kv_heads) * dim
    x = np.random.default_rng(3).standard_normal((n, width)).astype(np.float32)
    ops = NativeOps(2, isa)
    table, eye = ops.prepare(qtensor.QTensor(x, None, FP32, x.shape), FP32), np.eye(width, dtype=np.float32)
    cuts = np.cumsum([0, heads * dim, kv_heads * dim, kv_heads * dim])
    take = [ops.prepare(qtensor.quantize(eye[a:b], FP32), FP32) for a, b in pairwise(cuts)]
    kind: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "scale": scale, "window": window, "softcap": softcap}
    program = ops.capture(lambda o: o.select(o.attention(*o.linear(o.embed(table), take), 0, **kind)))
    pool = KVPool(7, [kv_heads], [dim], FP32)
    whole = np.array(program.run(step_of(n, pages=7), pool))
    agree(whole, attention(x, heads, kv_heads, dim, scale, window, softcap), 1e-4 if scale > 1 else 2e-5, 2e-4 if scale > 1 else 2e-6)
    pool.k[0][...] = pool.v[0][...] = np.nan
    chunks = [np.array(program.run(step_of(b - a, a, np.arange(a, b), 7), pool)) for a, b in ((0, 1), (1, 32), (32, 33), (33, 150), (150, 200))]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)
