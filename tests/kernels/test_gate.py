"""Gate and up in one tile (LinearCall::up in csrc/ops.h): the same bits as two linears and a gate behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo import _native, qtensor
from octavo.cache import PAGE, KVPool, Step
from octavo.kernels.native import NativeOps
from octavo.qtensor import QTensor
from octavo.schemes import TensorSpec

FP32, BF16 = TensorSpec("fp32"), TensorSpec("bf16")
GROUPS, ROWS = TensorSpec("int8", "group", 64, dynamic=True), TensorSpec("int8", "token", dynamic=True)
WEIGHTS = {"int4 g64": (TensorSpec("int4", "group", 64, scale_format="fp16"), GROUPS),
           "int4 g128 with zero points": (TensorSpec("int4", "group", 128, symmetric=False, scale_format="fp16"), GROUPS),
           "nf4": (TensorSpec("nf4", "group", 64), GROUPS), "int8": (TensorSpec("int8", "channel"), ROWS),
           "int8 g64": (TensorSpec("int8", "group", 64), GROUPS), "bf16": (BF16, BF16), "int4 g32, float": (TensorSpec("int4", "group", 32), BF16),
           "fp8, float": (TensorSpec("fp8e4m3", "channel"), BF16), "int8, float": (TensorSpec("int8", "channel"), BF16), "fp32": (FP32, FP32)}
WIDTH, VOCABULARY, MOST = 192, 61, 150


def gated(isa: str, name: str) -> bool:
    """Whether this set has a kernel that gates for these inputs."""
    activation = WEIGHTS[name][1]
    return isa in ("avx512vnni", "avx512bf16") if activation.quantized else isa == "avx512bf16" and activation is BF16


def program(isa: str, threads: int, name: str, kind: Any, wide: int, *, together: bool, read: bool = False) -> Any:
    """embed, gate and up, gate, down, logits of all rows. together: both in one linear; read: its output is read once more behind the gate."""
    spec, activation = WEIGHTS[name]
    rng = np.random.default_rng(3)
    table = QTensor(rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32), None, FP32, (VOCABULARY, WIDTH))
    gate, up = (qtensor.quantize(rng.standard_normal((wide, WIDTH)).astype(np.float32) / 8, spec) for _ in range(2))

    def describe(ops: Any) -> Any:
        x = ops.embed(ops.prepare(table, FP32))
        one, other = ops.prepare(gate, activation), ops.prepare(up, activation)
        g, u = ops.linear(x, [one, other]) if together else (ops.linear(x, [one])[0], ops.linear(x, [other])[0])
        y = ops.gate(kind, g, u)
        return ops.select(ops.add(y, g) if read else y)

    return NativeOps(threads, isa).capture(describe)


def step_of(rows: int) -> Step:
    places = np.arange(rows, dtype=np.int32)
    tokens = np.random.default_rng(rows).integers(0, VOCABULARY, rows, dtype=np.int32)
    pages = -(-rows // PAGE)
    return Step(tokens, places, places.copy(), np.array([0, rows], np.int32), np.array([rows], np.int32), np.arange(pages, dtype=np.int32)[None], places.copy())


def fused(one: Any, rows: int) -> bool:
    return any("gated" in op["shape"] for op in one.describe(rows, rows))


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("isa", _native.available_isas())
def test_the_same_bits_as_a_gate_by_itself(isa: str, name: str) -> None:
    for kind, wide in (("silu", 224), ("gelu_tanh", 16), ("gelu", 200), ("silu", 24), ("gelu_tanh", 1000)):
        apart = program(isa, 1, name, kind, wide, together=False)
        for threads in (1, 2, 3):
            one = program(isa, threads, name, kind, wide, together=True)
            for rows in (1, 2, 3, 7, 12, 20, 21, 48, 95, MOST):
                expected = np.array(apart.run(step_of(rows), KVPool(5, [1], [16], FP32)))
                assert expected.std() > 0.01
                np.testing.assert_array_equal(np.array(one.run(step_of(rows), KVPool(5, [1], [16], FP32))), expected, err_msg=f"{kind} {wide} {threads} {rows}")
            assert fused(one, 2) == fused(one, MOST) == gated(isa, name) and not fused(one, 1) and not fused(apart, MOST)


@pytest.mark.parametrize("isa", _native.available_isas())
def test_not_where_somebody_else_reads_what_is_gated(isa: str) -> None:
    one, apart = (program(isa, 2, "int4 g64", "silu", 96, together=together, read=True) for together in (True, False))
    for rows in (2, MOST):
        found, expected = (np.array(p.run(step_of(rows), KVPool(5, [1], [16], FP32))) for p in (one, apart))
        np.testing.assert_array_equal(found, expected)
    assert not fused(one, MOST)
