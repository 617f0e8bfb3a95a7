"""The program around the kernels: steps that grow, steps that lie, callers that come together, descriptions that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import qtensor
from octavo.cache import PAGE, KVPool, Step
from octavo.errors import KernelError, UsageError
from octavo.kernels.native import NativeOps, NativeProgram
from octavo.schemes import TensorSpec

FP32 = TensorSpec("fp32")
INT8 = TensorSpec("int8", "token", dynamic=True)
VOCAB, WIDTH, POSITIONS = 40, 24, 100
FIELDS = [f.name for f in fields(Step)]


def small(threads: int = 2, quantized: bool = True) -> NativeProgram:
    """Embedding, rope, attention with three heads, a linear: every field of a step is read."""
    ops, rng = NativeOps(threads), np.random.default_rng(0)
    spec = TensorSpec("int8", "channel") if quantized else FP32
    weight = ops.prepare(qtensor.quantize(rng.standard_normal((VOCAB, WIDTH)).astype(np.float32), spec), INT8 if quantized else FP32)
    table = ops.constant(rng.standard_normal((POSITIONS, 8)))

    def describe(o: Any) -> Any:
        x = o.rope(o.embed(weight), table, 3, 8, 8)
        y = o.attention(x, x, x, 0, heads=3, kv_heads=3, head_dim=8, scale=0.3)
        return o.linear(o.select(y), [weight])[0]

    program = ops.capture(describe)
    assert isinstance(program, NativeProgram)
    return program


def pool(pages: int = 4) -> KVPool:
    return KVPool(pages, [3], [8], FP32)


def step_of(*parts: tuple[int, int, list[int]]) -> Step:
    """parts: (rows, tokens already in the cache, pages) of each sequence"""
    at = [np.arange(past, past + rows) for rows, past, _ in parts]
    starts = np.cumsum([0] + [rows for rows, _, _ in parts])
    tables = np.zeros((len(parts), max(len(p) for _, _, p in parts)), np.int32)
    for i, (_, _, pages) in enumerate(parts):
        tables[i, : len(pages)] = pages
    slots = [np.array(pages)[a // PAGE] * PAGE + a % PAGE for a, (_, _, pages) in zip(at, parts, strict=True)]
    positions = np.concatenate(at)
    ints = (positions % VOCAB, positions, np.concatenate(slots), starts, np.array([rows + past for rows, past, _ in parts]))
    return Step(*(a.astype(np.int32) for a in ints), tables=tables, select=(starts[1:] - 1).astype(np.int32))


def test_buffers_grow_with_the_step_and_keep_the_numbers() -> None:
    program, fresh = small(), small()
    cache, held = pool(), []
    for rows in (1, 2, 17, 90, 3):
        got = np.array(program.run(step_of((rows, 0, [3, 1, 0])), cache))
        held.append(program.buffer_bytes)
        np.testing.assert_array_equal(got, fresh.run(step_of((rows, 0, [3, 1, 0])), pool()))
    assert held[0] <= held[1] < held[2] < held[3] == held[4]


def test_an_empty_step_is_nothing() -> None:
    none = np.zeros(0, np.int32)
    assert small().run(Step(none, none, none, np.zeros(1, np.int32), none, np.zeros((0, 1), np.int32), none), pool()).shape == (0, VOCAB)


@pytest.mark.parametrize("field,value,message", [
    ("starts", [0, 30_000_000, 8], "ascend"), ("starts", [0, 0, 8], "ascend"), ("starts", [0, 9, 8], "ascend"), ("starts", [-5, 3, 8], "ascend"),
    ("lengths", [2**31 - 1, 35], "too short"), ("lengths", [-(2**31), 35], "fewer"), ("slots", [64, 65, 66, 96, 97, 98, 99, 2**31 - 1], "outside"),
    ("tables", [[2, 0], [1, -1]], "page -1"), ("select", [7, -1], "select"), ("positions", [0, 1, 2, 30, 31, 32, 33, POSITIONS], "rope table of 100")])
def test_steps_that_lie(field: str, value: list[Any], message: str) -> None:
    step = step_of((3, 0, [2]), (5, 30, [1, 3]))
    setattr(step, field, np.array(value, np.int32))
    with pytest.raises(ValueError, match=message):
        small(1).run(step, pool())


def test_two_sequences_may_not_write_one_page() -> None:
    with pytest.raises(ValueError, match="same slot"):
        small(1).run(step_of((3, 0, [2]), (3, 0, [2])), pool())


PROGRAM = small(1)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_steps_run_or_are_refused(data: st.DataObject) -> None:
    """Any number anywhere: a ValueError or finite logits, never a crash."""
    step = step_of((3, 0, [2]), (5, 30, [1, 3]))
    numbers = st.one_of(st.integers(-3, 140), st.sampled_from([2**31 - 1, 2**31 - 31, -(2**31), 2**30, 1 << 20]))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(FIELDS))
        array = getattr(step, name).copy()
        if data.draw(st.integers(0, 4)) == 0:
            array = np.ascontiguousarray(array[: data.draw(st.integers(0, len(array)))])
        elif array.size:
            array.flat[data.draw(st.integers(0, array.size - 1))] = data.draw(numbers)
        setattr(step, name, array)
    try:
        logits = PROGRAM.run(step, pool())
    except ValueError:
        return
    assert np.isfinite(logits).all()


def test_a_pool_of_another_model_is_refused() -> None:
    program = small(1)
    for heads, dims, message in (([3], [512], "3 heads of 512"), ([2], [8], "2 heads of 8"), ([], [], "fewer layers")):
        with pytest.raises(ValueError, match=message):
            program.run(step_of((3, 0, [0])), KVPool(1, heads, dims, FP32))


def test_callers_at_the_same_time_wait_for_each_other() -> None:
    """Programs may share a team, as two models of one backend do."""
    ops = NativeOps(2)
    weight = ops.prepare(qtensor.quantize(np.random.default_rng(1).standard_normal((VOCAB, WIDTH)).astype(np.float32), FP32), FP32)
    programs = [ops.capture(lambda o: o.linear(o.select(o.embed(weight)), [weight])[0]) for _ in range(3)]
    steps = [step_of((n, 0, [2, 1])) for n in (1, 9, 40)]
    expected = [np.array(p.run(s, pool())) for p, s in zip(programs, steps, strict=True)]

    def often(i: int) -> bool:
        own = pool()
        return all(np.array_equal(programs[i].run(steps[i], own), expected[i]) for _ in range(50))

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(often, range(3)))


@pytest.mark.parametrize("wrong", [
    lambda o, w, x: o.add(o.select(x), x), lambda o, w, x: o.gate("silu", o.select(x), x), lambda o, w, x: o.select(o.select(x)),
    lambda o, w, x: o.rope(o.select(x), o.constant(np.ones((4, 8))), 3, 8, 8), lambda o, w, x: o.linear(o.select(x), [w], residual=o.linear(x, [w])[0])[0],
    lambda o, w, x: o.select(o.attention(x, x, x, -1, heads=3, kv_heads=3, head_dim=8, scale=1.0)), lambda o, w, x: o.softcap(o.select(x), 0.0),
    lambda o, w, x: o.select(o.rms_norm(x, o.constant(np.ones(7)), 1e-5))])
def test_descriptions_that_do_not_fit(wrong: Callable[..., Any]) -> None:
    ops = NativeOps(1)
    weight = ops.prepare(qtensor.quantize(np.ones((VOCAB, WIDTH), np.float32), FP32), FP32)
    with pytest.raises(ValueError):
        ops.capture(lambda o: wrong(o, weight, o.embed(weight)))


def test_rows_must_be_selected() -> None:
    ops = NativeOps(1)
    weight = ops.prepare(qtensor.quantize(np.ones((VOCAB, WIDTH), np.float32), FP32), FP32)
    with pytest.raises(KernelError, match="select"):
        ops.capture(lambda o: o.embed(weight))


@pytest.mark.parametrize("threads", [-3, 0, 100_000])
def test_thread_counts_that_cannot_be(threads: int) -> None:
    with pytest.raises(UsageError, match="--threads"):
        NativeOps(threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_numbers_do_not_depend_on_threads(threads: int) -> None:
    for quantized in (False, True):
        step = step_of((40, 0, [2, 3]), (1, 0, [0]))
        np.testing.assert_array_equal(small(threads, quantized).run(step, pool()), small(1, quantized).run(step, pool()))
