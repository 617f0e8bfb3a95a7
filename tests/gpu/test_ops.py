"""The recorded forward on the GPU's kernels against the reference backend, and what the engine needs of it, in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernels.test_native import CACHES, HIDDEN, VOCAB, prompt, step_of, toy

from octavo import qtensor
from octavo.cache import PAGE, Step, Tuning
from octavo.engine import Engine, EngineOptions
from octavo.engine.request import Request, Sampling
from octavo.errors import KernelError
from octavo.kernels.reference import ReferenceOps
from octavo.kernels.triton.ops import TritonOps
from octavo.kernels.triton.pool import GpuPool
from octavo.kernels.triton.program import BUCKETS, Logits, decode_layout, now_of
from octavo.loading import LoadedModel, load
from octavo.schemes import TensorSpec


def run(ops: Any, steps: list[Step], cache: str = "fp32", pages: int = 20, tuning: list[Tuning] | None = None, **kind: Any) -> list[np.ndarray]:
    program, heads, dims = toy(ops, **kind)
    pool = ops.new_pool(pages, heads, dims, CACHES[cache], tuning)
    for array in (a for layer in pool.layers for a in layer.arrays):
        if isinstance(array, torch.Tensor):
            array.fill_(float("nan") if array.is_floating_point() else 111)
    return [np.array(program.run(step, pool)) for step in steps]


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> None:
    assert np.abs(a.astype(np.float64) - b.astype(np.float64)).max() <= tolerance * max(1.0, float(np.abs(b).max()))


STEPS = [step_of([(prompt(3), 0, [3]), ([8], 0, [2])]), step_of([(prompt(2, 2), 3, [3]), ([4], 1, [2])])]


@pytest.mark.parametrize("kind", [
    {}, {"heads": 3, "kv_heads": 1, "dim": 6, "window": 4, "softcap": 20.0, "gate": "gelu_tanh"}, {"weight": "8", "act": "int8"},
], ids=lambda k: " ".join(f"{a}={b}" for a, b in k.items()) or "plain")
def test_logits_equal_the_reference(kind: dict[str, Any]) -> None:
    """float32 plans to float32; others to what bfloat16 between ops costs."""
    wide = "act" not in kind
    for a, b in zip(run(TritonOps(), STEPS, **kind), run(ReferenceOps(), STEPS, **kind), strict=True):
        close(a, b, 2e-5 if wide else 4e-2)


def test_norms_are_done_with_the_rounding_of_a_product() -> None:
    """Two of the three norms of each layer, where inputs are INT8; the third is of heads."""
    for kind, count in (({"weight": "8", "act": "int8"}, 2), ({}, 6)):
        program, _, _ = toy(TritonOps(), **kind)  # type: ignore[arg-type]
        assert [op.name for op in program.ops].count("rms_norm") == count


@pytest.mark.parametrize("cache", ["int8"])
def test_quantized_caches_equal_the_reference(cache: str) -> None:
    for a, b in zip(run(TritonOps(), STEPS, cache), run(ReferenceOps(), STEPS, cache), strict=True):
        close(a, b, 4e-3)


def test_balanced_keys_equal_the_reference() -> None:
    rng = np.random.default_rng(3)
    gain = rng.uniform(0.3, 3, (2, 2, 24)).astype(np.float32)
    tuning = [Tuning(np.stack([rng.standard_normal((2, 24)).astype(np.float32), 1 / g, g, g, g]).astype(np.float32)) for g in gain]
    for a, b in zip(run(TritonOps(), STEPS, "int8", tuning=tuning), run(ReferenceOps(), STEPS, "int8", tuning=tuning), strict=True):
        close(a, b, 4e-3)


def test_a_row_does_not_depend_on_the_others() -> None:
    """A prompt and a decoded token, alone and in company."""
    text = prompt(3)
    alone = run(TritonOps(), [step_of([(text, 0, [4])]), step_of([([5], 3, [4])])], "int8")
    crowd = run(TritonOps(), [step_of([(prompt(2, 7), 0, [1]), (text, 0, [4])]), step_of([([9], 2, [1]), ([5], 3, [4])])], "int8")
    close(crowd[0][2:], alone[0], 1e-6)
    close(crowd[1][1:], alone[1], 1e-6)


def test_inputs_of_a_captured_step_give_the_same_logits() -> None:
    """What a CUDA graph replays: the step in fixed places, filled up with rows that write nothing and see nothing."""
    ops = TritonOps()
    program, heads, dims = toy(ops)
    step, first = step_of([([7], 3, [3, 1]), ([3], 1, [2]), ([1], 0, [6])]), STEPS[0]
    pools = [ops.new_pool(20, heads, dims, CACHES["fp32"]) for _ in range(2)]
    for pool in pools:
        program.run(first, pool)
    wanted = np.array(program.run(step, pools[0]))
    rows, width = 4, 2
    layout = decode_layout(rows, width)
    numbers = torch.zeros(layout[-1][1], dtype=torch.int32)
    now = program.filled_up(rows, width, pools[1], numbers)
    now.slots.fill_(-1)
    for part, array in ((now.tokens, step.tokens), (now.positions, step.positions), (now.slots, step.slots), (now.who.lengths, step.lengths)):
        part[:3] = torch.from_numpy(array)
    now.who.tables[:3] = torch.from_numpy(step.tables)
    before = [array.clone() for layer in pools[1].layers for array in layer.arrays]
    found = program.replay(now)
    assert found.shape == (rows, VOCAB) and found.isfinite().all()
    close(found[:3].numpy(), wanted, 1e-6)
    after = [array for layer in pools[1].layers for array in layer.arrays]
    changed = {int(page) for a, b in zip(before, after, strict=True) for page in (a != b).flatten(1).any(dim=1).nonzero()}
    assert changed == {2, 3, 6}
    assert list(BUCKETS) == sorted(set(BUCKETS))


def test_a_step_is_cut_into_single_rows_and_tiles() -> None:
    ops = TritonOps()
    pool = ops.new_pool(20, [1], [8], TensorSpec("fp32"))
    step = step_of([([1], 4, [0]), ([1] * 70, 0, [1, 2, 3]), ([1], 0, [4]), ([1, 1], 0, [5])])
    who = now_of(step, pool, torch.device("cpu"), torch.float32, 0, frozenset([32])).who
    assert who.rows.tolist() == [0, 71] and who.sequences.tolist() == [0, 2] and who.splits == 1
    assert who.tiles[32].tolist() == [[1, 1], [1, 33], [1, 65], [3, 72]]


def test_the_largest_logit_and_steps_without_logits() -> None:
    ops = TritonOps()
    program, heads, dims = toy(ops)
    pool = ops.new_pool(4, heads, dims, CACHES["fp32"])
    step = step_of([(prompt(2), 0, [1])])
    logits = np.array(program.run(step, pool))
    place, value = program.best(logits)
    assert np.array_equal(place, logits.argmax(axis=1)) and np.array_equal(value, logits.max(axis=1))
    step.select = np.zeros(0, np.int32)
    nothing = program.run(step, pool)
    assert nothing.shape == (0, VOCAB) and len(program.best(nothing)[0]) == 0
    lazy = Logits(torch.from_numpy(logits))
    assert len(lazy) == 2 and np.array_equal(np.asarray(lazy), logits) and np.array_equal(lazy[1], logits[1]) and np.array_equal(lazy[0:1], logits[0:1])


def test_bad_steps_are_refused() -> None:
    ops = TritonOps()
    program, heads, dims = toy(ops)
    pool = ops.new_pool(4, heads, dims, CACHES["fp32"])
    good = ([1, 2, 3], 0, [2])
    for field, value, message in [("tokens", [1, 2, VOCAB], "vocabulary"), ("tokens", [-1, 2, 3], "vocabulary"), ("positions", [0, 1, 400], "rope"),
                                  ("slots", [0, 1, 4 * PAGE], "outside the cache"), ("starts", [0, 2], "starts"), ("lengths", [2], "fewer tokens"),
                                  ("lengths", [200], "too short"), ("select", [3], "select"), ("tables", [[9]], "outside the cache"),
                                  ("positions", [0], "fit")]:
        step = step_of([good])
        setattr(step, field, np.array(value, np.int32))
        with pytest.raises(ValueError, match=message):
            program.run(step, pool)


def test_spent_values_and_calls_outside_a_recording() -> None:
    ops = TritonOps()
    with pytest.raises(KernelError, match="recorded"):
        ops.add(None, None)  # type: ignore[arg-type]
    weight = ops.prepare(qtensor.quantize(np.ones((4, 8), np.float32), TensorSpec("bf16")), TensorSpec("bf16"))
    table = ops.constant(np.ones((4, 8)))

    def describe(ops: Any) -> Any:
        x = ops.embed(weight)
        ops.rope(x, table, 1, 8, 8)
        return ops.select(x)

    with pytest.raises(KernelError, match="in place"):
        ops.capture(describe)
    with pytest.raises(KernelError, match="selected"):
        ops.capture(lambda ops: ops.embed(weight))


def test_a_rotation_that_attention_does_not_take_is_done_anyway() -> None:
    ops, reference = TritonOps(), ReferenceOps()
    values = np.random.default_rng(0).standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    angles = np.random.default_rng(1).standard_normal((9, 12)).astype(np.float32)

    def logits(ops: Any) -> np.ndarray:
        weight = ops.prepare(qtensor.quantize(values, TensorSpec("fp32")), TensorSpec("fp32"))
        table = ops.constant(angles)

        def describe(ops: Any) -> Any:
            x = ops.rms_norm(ops.embed(weight), ops.constant(np.ones(HIDDEN)), 1e-5)
            return ops.linear(ops.select(ops.rope(x, table, 4, 12, 12)), [weight])[0]

        program = ops.capture(describe)
        return np.array(program.run(step_of([([1, 2, 3], 0, [0])]), ops.new_pool(1, [1], [8], TensorSpec("fp32"))))

    close(logits(ops), logits(reference), 2e-5)


def answers(loaded: LoadedModel, prompts: list[str], count: int) -> list[list[int]]:
    with Engine(loaded, EngineOptions(max_batch=4, kv_pages=16)) as engine:
        tickets = [engine.submit(Request(tuple(loaded.text.encode(text)), Sampling(temperature=0, max_tokens=count))) for text in prompts]
        return [[token for delta in ticket for token in delta.tokens] for ticket in tickets]


def test_the_engine_answers_as_on_the_reference(tiny_model: Path) -> None:
    """Greedy tokens of a real model in 16 bits, two sequences at a time."""
    prompts = ["Once", "Lily had"]
    ours = load(tiny_model, quantization="16bit", backend="triton", use_cache=False, max_model_len=64)
    assert ours.report.backend == "triton" and not ours.report.copy and isinstance(ours.new_pool(1), GpuPool)
    theirs = load(tiny_model, quantization="16bit", backend="reference", use_cache=False, max_model_len=64)
    assert answers(ours, prompts, 2) == answers(theirs, prompts, 2)
