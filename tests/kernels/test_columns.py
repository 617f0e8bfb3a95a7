"""Weights whose columns come in another order (GPTQ's act-order) or whose inputs are multiplied by factors (AWQ, SmoothQuant): native against reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo import _native, layouts, qtensor
from octavo.cache import PAGE, KVPool, Step
from octavo.errors import KernelError
from octavo.kernels.native import NativeOps, NativeProgram
from octavo.kernels.reference import ReferenceOps
from octavo.qtensor import QTensor
from octavo.schemes import TensorSpec

ISAS = _native.available_isas()
FP32 = TensorSpec("fp32")
BF16 = TensorSpec("bf16")
INT4 = TensorSpec("int4", "group", 32, scale_format="fp16")
INT8 = TensorSpec("int8", "token", dynamic=True)
INT8_GROUPS = TensorSpec("int8", "group", 32, dynamic=True)
K = 97


def weight(n: int, seed: int, order: bool = True, factors: bool = True, spec: TensorSpec = INT4, k: int = K) -> QTensor:
    rng = np.random.default_rng(seed)
    q = qtensor.quantize(rng.standard_normal((n, k)).astype(np.float32), spec)
    return replace(q, order=rng.permutation(k).astype(np.int32) if order else None,
                   factors=rng.uniform(0.25, 4, k).astype(np.float32) if factors else None)


def run(ops: Any, describe: Any, rows: int) -> tuple[np.ndarray, Any]:
    at = np.arange(rows, dtype=np.int32)
    pages = -(-rows // PAGE)
    step = Step(at, at, at, np.array([0, rows], np.int32), np.array([rows], np.int32), np.arange(pages, dtype=np.int32)[None], at)
    program = ops.capture(describe)
    return np.array(program.run(step, KVPool(pages, [1], [1], FP32))), program


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("activation", [FP32, BF16, INT8, INT8_GROUPS], ids=["float", "16 bits", "int8", "int8 groups"])
@pytest.mark.parametrize("isa", ISAS)
def test_linears_as_a_model_has_them(isa: str, activation: TensorSpec, rows: int) -> None:
    """q, k and v: two of one order, one of another, one plain; then a gate with factors only, and a linear with order, bias and residual."""
    rng = np.random.default_rng(3)
    table = QTensor(rng.standard_normal((64, K)).astype(np.float32), None, FP32, (64, K))
    q, other, plain = weight(48, 1), weight(48, 2), weight(48, 3, False, False)
    k = replace(weight(48, 4), order=q.order, factors=q.factors)
    down = weight(K, 5, k=48)
    bias, gain = rng.standard_normal(K).astype(np.float32), rng.uniform(0.5, 2, K).astype(np.float32)
    gates = [weight(48, 6, False), weight(48, 7, False)]

    def describe(ops: Any) -> Any:
        x = ops.embed(ops.prepare(table, FP32))
        y = ops.rms_norm(x, ops.constant(gain), 1e-6)
        a, b, c, d = ops.linear(y, [ops.prepare(w, activation) for w in (q, other, plain, k)])
        y = ops.rms_norm(x, ops.constant(gain), 1e-6)
        e, f = ops.linear(y, [ops.prepare(w, activation) for w in gates])
        mixed = ops.gate("silu", ops.add(ops.add(a, b), ops.add(c, d)), ops.add(e, f))
        (z,) = ops.linear(mixed, [ops.prepare(down, activation)], [ops.constant(bias)], x)
        return ops.select(z)

    expected, _ = run(ReferenceOps(), describe, rows)
    found = [run(NativeOps(threads, isa), describe, rows) for threads in (1, 2)]
    scale = np.abs(expected).max()
    in_floats = activation == FP32 or (activation == BF16 and isa != "avx512bf16")
    assert np.abs(found[0][0] - expected).max() <= (2e-6 if in_floats else 3e-2) * scale  # int8: values on the edge between two codes
    for other_threads, _ in found[1:]:
        assert np.array_equal(other_threads, found[0][0])
    program = found[0][1]
    assert isinstance(program, NativeProgram)
    kinds = [op["kind"] for op in program.describe(rows, rows)]
    assert kinds.count("columns") == 5  # q and k share one, the gates have one each


@pytest.mark.parametrize("isa", ISAS)
def test_rows_alone_and_in_company_give_the_same_bits(isa: str) -> None:
    rng = np.random.default_rng(0)
    table = QTensor(rng.standard_normal((64, K)).astype(np.float32), None, FP32, (64, K))
    packed = weight(33, 9)

    def describe(ops: Any) -> Any:
        y = ops.rms_norm(ops.embed(ops.prepare(table, FP32)), ops.constant(np.ones(K)), 1e-6)
        return ops.select(ops.linear(y, [ops.prepare(packed, INT8)])[0])

    many, _ = run(NativeOps(2, isa), describe, 20)
    one, _ = run(NativeOps(2, isa), describe, 1)
    assert np.array_equal(one[0], many[0])


@pytest.mark.parametrize("isa", ISAS)
def test_embedding(isa: str) -> None:
    for order, factors in ((True, True), (True, False), (False, True)):
        table = weight(40, 1, order, factors)

        def describe(ops: Any, table: QTensor = table) -> Any:
            return ops.select(ops.embed(ops.prepare(table, BF16), 2.0))

        expected = table.dequantize() * 2
        np.testing.assert_allclose(run(ReferenceOps(), describe, 40)[0], expected, rtol=1e-6)
        np.testing.assert_allclose(run(NativeOps(2, isa), describe, 40)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("k", [64, 96, 160, 192, 576, 1536])
@pytest.mark.parametrize("isa", ISAS)
def test_rotated_inputs(isa: str, k: int) -> None:
    """What linears see: through a weight that is 1 on its diagonal. Any instruction set, number of threads and of rows: the same bits."""
    rng = np.random.default_rng(k)
    x = rng.standard_normal((40, k)).astype(np.float32)
    x[1], x[2, 3], x[3, 5] = 0, 1e30, 1e-30
    block = qtensor.rotation_of(k)
    eye = replace(qtensor.quantize(np.eye(k, dtype=np.float32) * 127, TensorSpec("int8", "channel")), rotation=block)

    def describe(ops: Any) -> Any:
        return ops.select(ops.linear(ops.embed(ops.prepare(QTensor(x, None, FP32, x.shape), FP32)), [ops.prepare(eye, FP32)])[0])

    exact = qtensor.rotate(x.astype(np.float64), block) * 127
    found = run(NativeOps(2, isa), describe, 40)[0]
    assert (np.abs(found - exact) <= 1e-6 * np.abs(exact).max(axis=1, keepdims=True)).all()
    assert np.array_equal(run(NativeOps(1, isa), describe, 40)[0], found)
    assert np.array_equal(run(NativeOps(2, isa), describe, 3)[0], found[:3])
    assert np.array_equal(run(NativeOps(1, "portable"), describe, 40)[0], found)


@pytest.mark.parametrize("isa", ISAS)
def test_embedding_of_a_weight_with_rotated_inputs(isa: str) -> None:
    table = qtensor.quantize(np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32), INT4, rotation=32)

    def describe(ops: Any) -> Any:
        return ops.select(ops.embed(ops.prepare(table, BF16), 2.0))

    expected = table.dequantize() * 2
    for ops in (ReferenceOps(), NativeOps(2, isa)):
        np.testing.assert_allclose(run(ops, describe, 40)[0], expected, atol=1e-6)


def test_packing_keeps_order_and_factors() -> None:
    for order, factors in ((True, True), (True, False), (False, True)):
        q = weight(50, 1, order, factors)
        packed = layouts.pack(q)
        for back in (layouts.unpack(packed), layouts.unpack(packed, slice(16, 50))):
            assert (back.order is None) == (not order) and (back.factors is None) == (not factors)
        assert np.array_equal(layouts.unpack(packed).dequantize(), q.dequantize())
        assert packed.nbytes == packed.meta.nbytes + 4 * K * (order + factors)


def test_what_is_no_order_is_refused() -> None:
    q = weight(16, 1)
    assert q.order is not None and q.factors is not None
    twice, short, endless = q.order.copy(), q.order[:-1], q.factors.copy()
    twice[0], endless[3] = twice[1], np.inf
    for bad in (replace(q, order=twice), replace(q, order=short), replace(q, factors=endless)):
        with pytest.raises(KernelError, match=r"permutation|finite"):
            layouts.pack(bad)
    plain = QTensor(np.ones((4, K), np.float32), None, FP32, (4, K), order=q.order)
    with pytest.raises(KernelError, match="only quantized"):
        layouts.pack(plain)
    packed = layouts.blank(INT4, 32, K, q)
    with pytest.raises(KernelError, match="different ways"):
        layouts.pack_rows(packed, 0, replace(q, order=None))


def test_the_program_refuses_places_that_are_not_there() -> None:
    program = _native.Program(_native.Team(1), "portable")
    x, y, wide = program.buffer(8, False), program.buffer(8, False), program.buffer(9, False)
    good, bad, short = (program.places(np.array(p, np.int32)) for p in (range(8), [0, 1, 2, 3, 4, 5, 6, 8], range(7)))
    program.columns(x, good, -1, 0, y)
    for order, factors, out in ((bad, -1, y), (short, -1, y), (-1, -1, wide), (good, -1, x), (-1, program.constant(np.ones(7, np.float32)), y)):
        with pytest.raises(ValueError, match="columns"):
            program.columns(x, order, factors, 0, out)
