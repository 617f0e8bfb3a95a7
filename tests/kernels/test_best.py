"""The largest logit of each row, which greedy requests want: as NumPy's argmax finds it, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from octavo import _native, qtensor
from octavo.cache import KVPool, Step
from octavo.kernels.native import NativeOps
from octavo.kernels.reference import largest
from octavo.schemes import TensorSpec

FP32 = TensorSpec("fp32")
NAN, INF = float("nan"), float("inf")


def rows(width: int) -> np.ndarray:
    """[18, width]: ordinary rows, ties, none above zero, and what is not finite at the beginning, the end and between."""
    table = np.random.default_rng(width).standard_normal((18, width)).astype(np.float32)
    table[1] = 0
    table[2] = -np.abs(table[2]) - 1
    table[3, [width // 3, width // 2, -1]] = 50
    table[4, 0] = table[5, -1] = 60
    for row, (place, value) in enumerate([(0, NAN), (-1, NAN), (width // 2, NAN), (0, INF), (-1, INF), (width // 2, -INF), (-1, -INF)], 6):
        table[row, place] = value
    table[13] = -INF
    table[14] = NAN
    table[15, [width // 4, width // 2]] = NAN
    table[16, width // 4], table[16, width // 2] = INF, NAN
    table[17, :] = -INF
    table[17, -1] = -3e38
    return table


def halves(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two finite arrays that add up to `table` when each is multiplied by 8: weights cannot hold what is not finite."""
    huge = np.float32(3e38)
    first = np.where(np.isnan(table) | (table == INF), huge, np.where(table == -INF, -huge, table / np.float32(8)))
    second = np.where(np.isnan(table), -huge, 0)
    return first.astype(np.float32), second.astype(np.float32)


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("width", [1, 15, 16, 33, 1024, 1040, 1055, 4999])
def test_the_largest_of_each_row_is_numpys(isa: str, width: int) -> None:
    table, ops = rows(width), NativeOps(2, isa)
    weights = [ops.prepare(qtensor.quantize(part, FP32), FP32) for part in halves(table)]
    program = ops.capture(lambda o: o.select(o.add(o.embed(weights[0], 8.0), o.embed(weights[1], 8.0))))
    tokens = np.array([*range(len(table)), 3, 2, 6], np.int32)
    ids = np.arange(len(tokens), dtype=np.int32)
    starts = np.arange(len(tokens) + 1, dtype=np.int32)
    step = Step(tokens, ids * 0, ids * 32, starts, ids * 0 + 1, ids.reshape(-1, 1).copy(), ids)
    logits = program.run(step, KVPool(32, [1], [8], FP32))
    np.testing.assert_array_equal(logits, table[tokens])
    place, value = program.best(logits)
    wanted, most = largest(table[tokens])
    np.testing.assert_array_equal(place, wanted)
    np.testing.assert_array_equal(value, most)


def test_a_step_that_wants_no_logits_has_none() -> None:
    """A chunk inside a prompt, after steps of several sizes: there is nothing to align and nothing to find."""
    ops = NativeOps(2)
    weight = ops.prepare(qtensor.quantize(np.ones((18, 48), np.float32), FP32), FP32)
    program, pool = ops.capture(lambda o: o.select(o.embed(weight))), KVPool(32, [1], [8], FP32)
    for wanted in (0, 3, 0, 9, 0):
        tokens = np.arange(10, dtype=np.int32)
        one = np.array([10], np.int32)
        step = Step(tokens, tokens, tokens, np.array([0, 10], np.int32), one, one.reshape(1, 1) * 0, np.arange(wanted, dtype=np.int32))
        logits = program.run(step, pool)
        assert logits.shape == (wanted, 48) and all(len(found) == wanted for found in program.best(logits))
