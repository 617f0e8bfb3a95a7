"""Int8 activations whose largest values stay unrounded (LLM.int8()): every instruction set against float64, a program against the reference, and
the numbers of bitsandbytes itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo import _native, layouts, qtensor
from octavo.cache import PAGE, KVPool, Step
from octavo.kernels.native import NativeOps, NativeWeight
from octavo.kernels.reference import ReferenceOps, round_activations
from octavo.qtensor import QTensor
from octavo.schemes import TensorSpec, parse_tensor

from .test_linear import ROW, rounded
from .test_trellis import weight as trellis_weight

ISAS = _native.available_isas() + (["amx_emulated"] if "avx2" in _native.available_isas() else [])
FP32 = TensorSpec("fp32")
WEIGHTS = {"int8": "8", "int8 g64 zeros": "8g64z", "int4 g32": "4g32", "int4 g96 zeros": "4g96z", "nf4": "nf4", "trellis": "tcq3"}  # weights by name
SHAPES = [(1, 1), (17, 31), (40, 130), (33, 2112)]
LARGE = 6.0


def packed_weight(name: str, n: int, k: int) -> tuple[layouts.Packed, np.ndarray]:
    """(panels, the numbers they stand for [n, k])"""
    numbers = np.random.default_rng(n + k).standard_normal((n, k)).astype(np.float32)
    tensor = trellis_weight(n, k, 3) if name == "trellis" else qtensor.quantize(numbers, parse_tensor(WEIGHTS[name], "weight"))
    return layouts.pack(tensor), np.asarray(tensor.dequantize(), np.float64)


def inputs(rows: int, k: int) -> np.ndarray:
    """Rows with none to all values beyond the threshold, on it, just below it, and far beyond it."""
    rng = np.random.default_rng(rows + k)
    x = rng.standard_normal((rows, k)).clip(-4, 4).astype(np.float32)
    some = rng.random((rows, k)) < 0.02
    some[::4] = False  # rows without any
    x[some] *= np.float32(20)
    x[1] *= np.float32(100) / np.abs(x[1]).min()  # nothing but outliers
    x[2] = 0
    x[3, 0], x[3, -1] = 6, -6
    x[4, 0] = np.nextafter(np.float32(6), np.float32(0))
    x[5, k // 2] = 3e30
    return x


def multiply(packed: layouts.Packed, x: np.ndarray, isa: str, activation: TensorSpec, kernel: str = "") -> np.ndarray:
    weight = NativeWeight(packed, activation)
    y = np.full((len(x), weight.n), 7, np.float32)
    _native.linear_once(weight.native, np.ascontiguousarray(x), y, isa, weight.group, kernel=kernel, threshold=activation.threshold)
    return y


@pytest.mark.parametrize("how", ["8o6", "8g64o6"])
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("isa", ISAS)
def test_against_float64(isa: str, name: str, how: str) -> None:
    spec = parse_tensor(how, "activation")
    for n, k in SHAPES:
        packed, values = packed_weight(name, n, k)
        x = inputs(70, k)
        kept = np.abs(x) >= LARGE
        rest = np.where(kept, np.float32(0), x)
        seen = rounded(rest, spec.size or ROW) + np.where(kept, x, 0)
        reference = round_activations(x, spec)
        assert np.array_equal(reference[kept], x[kept].astype(np.float64))
        assert np.abs(reference - seen).max() <= LARGE / 125 and np.abs(reference - seen).mean() < 1e-4  # a few on the edge between two codes
        y = multiply(packed, x, isa, spec)
        size = np.abs(seen) @ np.abs(values).T
        assert (np.abs(y - seen @ values.T) <= (8e-3 if name == "nf4" else 4e-6) * size + 1e-6).all()
        few = multiply(packed, x[8:9], isa, spec)  # alone or in company: the same bits
        assert np.array_equal(few, y[8:9]) and np.array_equal(multiply(packed, x[5:23], isa, spec), y[5:23])
        for kernel in _native.linear_kernels(isa)[1:]:
            if _native.linear_supported(NativeWeight(packed, spec).native, isa, NativeWeight(packed, spec).group, len(x), kernel):
                assert np.array_equal(multiply(packed, x, isa, spec, kernel), y), kernel
        plain = multiply(packed, x, isa, replace(spec, threshold=0.0))
        assert np.array_equal(plain[::4][~kept[::4].any(axis=1)], y[::4][~kept[::4].any(axis=1)])  # rows without outliers are plain W8A8


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_finite_makes_its_row_nan_and_no_other(isa: str) -> None:
    packed, _ = packed_weight("int8", 24, 130)
    x = inputs(9, 130)
    clean = multiply(packed, x, isa, parse_tensor("8o6", "activation"))
    x[1, 7], x[3, 129], x[6, 0], x[7, 64] = np.nan, np.inf, -np.inf, np.nan
    y = multiply(packed, x, isa, parse_tensor("8o6", "activation"))
    bad = [1, 3, 6, 7]
    assert np.isnan(y[bad]).all()
    assert np.array_equal(np.delete(y, bad, axis=0), np.delete(clean, bad, axis=0))
    assert np.isnan(round_activations(x, parse_tensor("8o6", "activation"))[bad]).all()


def run(ops: Any, describe: Callable[[Any], Any], rows: int) -> np.ndarray:
    at = np.arange(rows, dtype=np.int32)
    pages = -(-rows // PAGE)
    step = Step(at, at, at, np.array([0, rows], np.int32), np.array([rows], np.int32), np.arange(pages, dtype=np.int32)[None], at)
    return np.array(ops.capture(describe).run(step, KVPool(pages, [1], [1], FP32)))


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("isa", _native.available_isas())
def test_a_program_as_a_model_has_it(isa: str, rows: int) -> None:
    """Two linears that share inputs, one with another threshold, one whose columns come in another order; then one with bias and residual. k is not
    a multiple of anything, and one layer is wider than the scratch of its kernels."""
    k, rng = 97, np.random.default_rng(3)
    table = QTensor(inputs(64, k), None, FP32, (64, k))
    small, other, plain = parse_tensor("8o6", "activation"), parse_tensor("8g32o0.5", "activation"), parse_tensor("8", "activation")

    def weight(n: int, width: int = k) -> QTensor:
        return qtensor.quantize(rng.standard_normal((n, width)).astype(np.float32) / np.sqrt(width), parse_tensor("8", "weight"))

    a, b, c, up, down = weight(48), weight(48), weight(48), weight(40_000, 48), weight(k, 40_000)
    order = replace(a, order=rng.permutation(k).astype(np.int32), factors=rng.uniform(0.25, 4, k).astype(np.float32))
    bias = rng.standard_normal(k).astype(np.float32)

    def describe(ops: Any) -> Any:
        x = ops.embed(ops.prepare(table, FP32))
        outs = ops.linear(x, [ops.prepare(w, s) for w, s in ((a, small), (b, small), (c, other), (order, small), (c, plain))])
        total = outs[0]
        for out in outs[1:]:
            total = ops.add(total, out)
        (wide,) = ops.linear(total, [ops.prepare(up, FP32)])
        (y,) = ops.linear(wide, [ops.prepare(down, small)], [ops.constant(bias)], x)
        return ops.select(y)

    one, two = (run(NativeOps(threads, isa), describe, rows) for threads in (1, 2))
    assert np.array_equal(one, two)
    expected = run(ReferenceOps(), describe, rows)
    calm = np.abs(expected).max(axis=1) < 1e6  # the row with 3e30 overwhelms its own sums
    assert calm.sum() >= rows - 1
    assert np.abs(one - expected)[calm].max() <= 2e-2 * np.abs(expected[calm]).max()  # values on the edge between two codes


def test_the_numbers_of_bitsandbytes() -> None:
    """Its Linear8bitLt on the CPU, a row at a time (it leaves whole columns out where any row of a batch has an outlier)."""
    import torch
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    rng = np.random.default_rng(0)
    n, k = 48, 160
    layer = Linear8bitLt(k, n, bias=True, has_fp16_weights=False, threshold=LARGE)
    values, bias = rng.standard_normal((n, k)).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    layer.weight = Int8Params(torch.from_numpy(values), has_fp16_weights=False, requires_grad=False)
    layer.bias.data = torch.from_numpy(bias)
    layer = layer.to("cpu").eval()
    layer.init_8bit_state()
    x = inputs(12, k)[[0, 3, 6, 7, 8, 9, 10, 11]].astype(np.float16).astype(np.float32)  # it rounds inputs to half precision
    with torch.no_grad():
        theirs = np.concatenate([layer(torch.from_numpy(row[None])).numpy() for row in x])
    codes, largest = layer.state.CB if layer.state.CB is not None else layer.weight.data, layer.state.SCB
    scales = (largest.numpy().astype(np.float32) / np.float32(127)).reshape(-1, 1)
    tensor = QTensor(codes.numpy(), scales, parse_tensor("8", "weight"), (n, k))
    ours, plain = (multiply(layouts.pack(tensor), x, "", parse_tensor(how, "activation")) + bias for how in ("8o6", "8"))
    exact = x.astype(np.float64) @ np.asarray(tensor.dequantize(), np.float64).T + bias
    apart = np.abs(ours - theirs).max(axis=1)
    assert (apart < 1e-3).sum() >= 6 and apart.max() < 0.1  # where a value is on the edge between two codes, it may fall to either
    assert np.abs(ours - exact).max() <= 1.05 * np.abs(theirs - exact).max() < 0.2 * np.abs(plain - exact).max()
