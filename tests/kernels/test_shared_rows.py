"""Steps of so many rows that the members of a team share out rows instead of panels, and hardly meet (csrc/meeting_ops.h): the same bits as one thread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo import _native, qtensor
from octavo.cache import PAGE, KVPool, Step
from octavo.kernels.native import NativeOps
from octavo.qtensor import QTensor
from octavo.schemes import TensorSpec

FP32, BF16 = TensorSpec("fp32"), TensorSpec("bf16")
GROUPS, ROWS = TensorSpec("int8", "group", 32, dynamic=True), TensorSpec("int8", "token", dynamic=True)
OUTLIERS = replace(ROWS, threshold=3.0)
WEIGHTS = {"int4 g32, int8 g32": (TensorSpec("int4", "group", 32, scale_format="fp16"), GROUPS), "int8, int8": (TensorSpec("int8", "channel"), ROWS),
           "int8, outliers": (TensorSpec("int8", "channel"), OUTLIERS), "bf16": (BF16, BF16), "int4 g32, float": (TensorSpec("int4", "group", 32), BF16)}
WIDTH, WIDE, VOCABULARY, MOST = 96, 224, 61, 211


def layers(name: str, rotated: bool) -> Any:
    """Two layers as models have them: linears of different widths between norms, rope, attention, a gate and residuals; then logits of some rows."""
    spec, activation = WEIGHTS[name]
    rng = np.random.default_rng(5)

    def weight(n: int, k: int) -> QTensor:
        q = qtensor.quantize(rng.standard_normal((n, k)).astype(np.float32) / np.float32(np.sqrt(k)), spec)
        return replace(q, rotation=qtensor.rotation_of(k)) if rotated and activation.quantized else q

    table = QTensor(rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32), None, FP32, (VOCABULARY, WIDTH))
    shapes = (WIDTH, WIDTH), (32, WIDTH), (32, WIDTH), (WIDTH, WIDTH), (WIDE, WIDTH), (WIDE, WIDTH), (WIDTH, WIDE)
    parts = [[weight(n, k) for n, k in shapes] for _ in range(2)]
    head, bias = weight(VOCABULARY, WIDTH), rng.standard_normal(WIDTH).astype(np.float32)
    angles = np.concatenate([np.cos(np.arange(MOST)[:, None] / 5 ** np.arange(16)), np.sin(np.arange(MOST)[:, None] / 5 ** np.arange(16))], axis=1)

    def describe(ops: Any) -> Any:
        gain, turns = ops.constant(np.ones(WIDTH, np.float32)), ops.constant(angles)
        x = ops.embed(ops.prepare(table, FP32))
        for layer, (q, k, v, o, gate, up, down) in enumerate(parts):
            y = ops.rms_norm(x, gain, 1e-6)
            a, b, c = ops.linear(y, [ops.prepare(w, activation) for w in (q, k, v)])
            a, b = ops.rope(a, turns, 3, 32, 32), ops.rope(b, turns, 1, 32, 32)
            z = ops.attention(a, b, c, layer, heads=3, kv_heads=1, head_dim=32, scale=0.2)
            (x,) = ops.linear(z, [ops.prepare(o, activation)], [ops.constant(bias)], x)
            y = ops.rms_norm(x, gain, 1e-6)
            g, u = ops.linear(y, [ops.prepare(w, activation) for w in (gate, up)])
            (x,) = ops.linear(ops.gate("silu", g, u), [ops.prepare(down, activation)], None, x)
        return ops.linear(ops.select(ops.rms_norm(x, gain, 1e-6)), [ops.prepare(head, activation)])[0]

    return describe


def step_of(rows: int, wanted: int) -> Step:
    """Up to three sequences, the last `wanted` rows of which want logits."""
    cuts = np.unique(np.array([0, rows // 3, rows // 2, rows], np.int32))
    lengths = np.diff(cuts).astype(np.int32)
    pages = -(-int(lengths.max()) // PAGE)
    tables = np.arange(len(lengths) * pages, dtype=np.int32).reshape(len(lengths), pages)
    places = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    slots = np.concatenate([tables[s, np.arange(n) // PAGE] * PAGE + np.arange(n) % PAGE for s, n in enumerate(lengths)]).astype(np.int32)
    tokens = np.random.default_rng(rows).integers(0, VOCABULARY, rows, dtype=np.int32)
    return Step(tokens, places, slots, cuts, lengths, tables, np.arange(rows - wanted, rows, dtype=np.int32))


@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("isa", _native.available_isas())
def test_members_that_share_rows_say_what_one_says(isa: str, name: str, rotated: bool) -> None:
    describe = layers(name, rotated)
    programs = {threads: NativeOps(threads, isa).capture(describe) for threads in (1, 2, 3, 4)}
    for rows, wanted in ((MOST, MOST), (MOST, 1), (200, 60), (95, 95), (96, 3), (72, 71), (48, 48), (47, 47), (3, 1), (1, 1), (MOST, 100)):
        step = step_of(rows, wanted)
        expected = np.array(programs[1].run(step, KVPool(24, [1, 1], [32, 32], FP32)))
        assert np.isfinite(expected).all() and expected.std() > 0.1
        for threads in (2, 3, 4):
            for _ in range(3):
                assert np.array_equal(np.array(programs[threads].run(step, KVPool(24, [1, 1], [32, 32], FP32))), expected), (threads, rows, wanted)
