"""The thread team: it costs nothing when idle, and two teams that share the cores both get on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from octavo.kernels.native import NativeOps
from octavo.loading import load
from octavo.machine import detect


def busy(ops: NativeOps, steps: int) -> np.ndarray:
    """The result of many short steps, each with a few barriers."""
    from octavo.cache import KVPool, Step
    from octavo.qtensor import quantize
    from octavo.schemes import TensorSpec

    rng = np.random.default_rng(1)
    weight = ops.prepare(quantize(rng.standard_normal((64, 64)).astype(np.float32), TensorSpec("int8", "channel")), TensorSpec("bf16"))

    def describe(at: object) -> object:
        x = ops.embed(weight)
        for _ in range(8):
            (x,) = ops.linear(x, [weight])
        return ops.select(x)

    program = ops.capture(describe)
    one, zero = np.ones(1, np.int32), np.zeros(1, np.int32)
    step = Step(one, zero, zero.copy(), np.array([0, 1], np.int32), one.copy(), zero[None].copy(), zero.copy())
    pool = KVPool(1, [1], [64], TensorSpec("fp32"))
    for _ in range(steps):
        result = program.run(step, pool)
    return result.copy()


def test_an_idle_team_sleeps() -> None:
    """In a process of its own: threads of other tests would count."""
    code = """
import time
from kernels.test_team import busy
from octavo.kernels.native import NativeOps
ops = NativeOps(threads=3)
busy(ops, 3)
time.sleep(0.05)
began = time.process_time()
time.sleep(0.5)
print(time.process_time() - began)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split()[-1]) < 0.05


def test_two_teams_at_once_give_the_same_bits() -> None:
    expected = busy(NativeOps(threads=1), 1)
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(busy(NativeOps(threads=3), 200))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 2
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_more_threads_than_cores_are_not_started_and_that_is_said(tiny_model: object, cache_dir: object) -> None:
    cores = detect().cores
    loaded = load(str(tiny_model), quantization="8bit", threads=cores + 3)
    assert loaded.backend.threads == cores and f"instead of {cores + 3}" in " ".join(loaded.report.notes)
    assert not load(str(tiny_model), quantization="8bit", threads=cores).report.notes


def test_cores_are_those_this_process_may_use() -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert detect().cores == 1
    finally:
        os.sched_setaffinity(0, mine)
