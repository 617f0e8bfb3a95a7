"""The native backend against the reference backend and against itself: chunks, batches, threads, instruction sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo import _native, qtensor, schemes
from octavo.cache import PAGE, KVPool, Step
from octavo.errors import KernelError
from octavo.kernels.native import NativeOps
from octavo.kernels.reference import ReferenceOps
from octavo.schemes import TensorSpec

ISAS = _native.available_isas()
CACHES = {"fp32": TensorSpec("fp32"), "bf16": TensorSpec("bf16"), "int8": TensorSpec("int8", "token", dynamic=True)}
VOCAB, HIDDEN = 50, 48


def step_of(parts: list[tuple[list[int], int, list[int]]], every: bool = True) -> Step:
    """parts: (new tokens, tokens already in the cache, pages) of each sequence; logits of every row, or of the last rows."""
    tokens, positions, slots, starts, lengths, select = [], [], [], [0], [], []
    for new, past, pages in parts:
        for i, token in enumerate(new):
            at = past + i
            tokens.append(token)
            positions.append(at)
            slots.append(pages[at // PAGE] * PAGE + at % PAGE)
        starts.append(len(tokens))
        lengths.append(past + len(new))
        select += list(range(starts[-2], starts[-1])) if every else [starts[-1] - 1]
    tables = np.zeros((len(parts), max(len(p) for _, _, p in parts)), np.int32)
    for i, (_, _, pages) in enumerate(parts):
        tables[i, : len(pages)] = pages
    return Step(*(np.array(a, np.int32) for a in (tokens, positions, slots, starts, lengths)), tables, np.array(select, np.int32))


def toy(ops: Any, *, heads: int = 4, kv_heads: int = 2, dim: int = 24, window: int = 0, softcap: float = 0.0, act: str = "fp32", weight: str = "fp32",
        gate: str = "silu", seed: int = 0) -> Any:
    """Two layers with everything in them, on any backend."""
    rng = np.random.default_rng(seed)
    spec, activation = schemes.parse(f"W{weight}").weight, CACHES["int8"] if act == "int8" else TensorSpec(act)

    def weight_of(n: int, k: int) -> Any:
        return ops.prepare(qtensor.quantize((rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32), spec), activation)

    embedding = ops.prepare(qtensor.quantize(rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32), spec), activation)
    angles = np.arange(400)[:, None] * (100.0 ** -(np.arange(dim // 2) / (dim // 2)))
    table = ops.constant(np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    layers = []
    for _ in range(2):
        layers.append({
            "qkv": [weight_of(heads * dim, HIDDEN), weight_of(kv_heads * dim, HIDDEN), weight_of(kv_heads * dim, HIDDEN)],
            "o": weight_of(HIDDEN, heads * dim), "up": [weight_of(70, HIDDEN), weight_of(70, HIDDEN)], "down": weight_of(HIDDEN, 70),
            "gain": ops.constant(rng.standard_normal(HIDDEN)), "bias": ops.constant(rng.standard_normal(heads * dim)),
            "head_gain": ops.constant(rng.standard_normal(dim))})

    def describe(ops: Any) -> Any:
        x = ops.embed(embedding, 1.5)
        for i, layer in enumerate(layers):
            y = ops.rms_norm(x, layer["gain"], 1e-5)
            q, k, v = ops.linear(y, layer["qkv"], [layer["bias"], None, None])
            q = ops.rms_norm(q, layer["head_gain"], 1e-5, 1.0, groups=heads)
            q, k = ops.rope(q, table, heads, dim, dim), ops.rope(k, table, kv_heads, dim, dim)
            y = ops.attention(q, k, v, i, heads=heads, kv_heads=kv_heads, head_dim=dim, scale=dim**-0.5, window=window, softcap=softcap)
            (x,) = ops.linear(y, [layer["o"]], residual=x)
            a, b = ops.linear(ops.rms_norm(x, layer["gain"], 1e-5), layer["up"])
            (y,) = ops.linear(ops.gate(gate, a, b), [layer["down"]])
            x = ops.add(x, y)
        (logits,) = ops.linear(ops.select(x), [embedding])
        return ops.softcap(logits, 30.0)

    return ops.capture(describe), [kv_heads] * 2, [dim] * 2


def prompt(length: int, seed: int = 5) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, VOCAB, length)]


def run(ops: Any, steps: list[Step], cache: str = "fp32", pages: int = 20, **kind: Any) -> list[np.ndarray]:
    program, heads, dims = toy(ops, **kind)
    pool = KVPool(pages, heads, dims, CACHES[cache])
    for array in pool.k + pool.v + pool.k_scale + pool.v_scale:  # what a page held before must not matter, NaN least of all
        array[...] = np.nan if array.dtype == np.float32 else 0x7FC0 if array.dtype == np.uint16 else 111
    return [np.array(program.run(step, pool)) for step in steps]


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> None:
    assert np.abs(a.astype(np.float64) - b.astype(np.float64)).max() <= tolerance * max(1.0, float(np.abs(b).max()))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [
    {}, {"heads": 3, "kv_heads": 3, "dim": 6}, {"heads": 6, "kv_heads": 1, "dim": 80}, {"heads": 8, "kv_heads": 2, "dim": 16, "window": 7},
    {"window": 40, "softcap": 20.0}, {"gate": "gelu_tanh"}, {"gate": "gelu"}, {"dim": 64, "heads": 9, "kv_heads": 3},
], ids=lambda k: " ".join(f"{a}={b}" for a, b in k.items()) or "plain")
def test_logits_equal_the_reference(isa: str, kind: dict[str, Any]) -> None:
    steps = [step_of([(prompt(75), 0, [3, 1, 7, 9]), (prompt(5, 1), 0, [2])]), step_of([(prompt(30, 2), 75, [3, 1, 7, 9]), ([4], 5, [2]), ([9, 8], 0, [11])])]
    ours = run(NativeOps(2, isa), steps, **kind)
    for a, b in zip(ours, run(ReferenceOps(), steps, **kind), strict=True):
        close(a, b, 2e-5)


@pytest.mark.parametrize("cache", ["bf16", "int8"])
@pytest.mark.parametrize("isa", ISAS)
def test_quantized_caches_equal_the_reference(isa: str, cache: str) -> None:
    steps = [step_of([(prompt(70), 0, [0, 5, 2])]), step_of([([7], 70, [0, 5, 2])])]
    for a, b in zip(run(NativeOps(1, isa), steps, cache), run(ReferenceOps(), steps, cache), strict=True):
        close(a, b, 4e-3)  # a key that lies on a rounding border may fall to the other side in float32


@pytest.mark.parametrize("weight,act", [("8", "int8"), ("4g32", "int8"), ("bf16", "fp32"), ("4g64", "fp32"), ("nf4", "fp32")])
def test_quantized_weights_equal_the_reference(weight: str, act: str) -> None:
    steps = [step_of([(prompt(20), 0, [0])])]
    for a, b in zip(run(NativeOps(2), steps, weight=weight, act=act), run(ReferenceOps(), steps, weight=weight, act=act), strict=True):
        close(a, b, 2e-2 if act == "int8" else 2e-5)  # likewise for activations on a border


@pytest.mark.parametrize("cache", list(CACHES))
@pytest.mark.parametrize("kind", [{}, {"weight": "8", "act": "int8"}, {"weight": "4g32", "act": "int8"}, {"window": 9}], ids=["fp32", "W8A8", "W4A8", "window"])
def test_the_same_bits_however_it_is_served(kind: dict[str, Any], cache: str) -> None:
    """A prompt whole, in chunks, token by token, in company, on one thread or two."""
    text, pages = prompt(81), [4, 0, 6, 2]
    whole = run(NativeOps(2), [step_of([(text, 0, pages)])], cache, **kind)[0]
    chunks = run(NativeOps(1), [step_of([(text[a:b], a, pages)]) for a, b in ((0, 10), (10, 11), (11, 50), (50, 81))], cache, **kind)
    assert np.array_equal(np.concatenate(chunks), whole)
    single = run(NativeOps(2), [step_of([(text[a : a + 1], a, pages)]) for a in range(81)], cache, **kind)
    assert np.array_equal(np.concatenate(single), whole)
    crowd = [step_of([(prompt(33, 7), 0, [1, 3]), (text[:40], 0, pages), (prompt(3, 8), 0, [5])]), step_of([(text[40:], 40, pages), ([1], 33, [1, 3])])]
    first, second = run(NativeOps(3), crowd, cache, **kind)
    assert np.array_equal(np.concatenate([first[33:73], second[:41]]), whole)


def test_bad_steps_are_refused() -> None:
    program, heads, dims = toy(NativeOps(1))
    pool = KVPool(4, heads, dims, CACHES["fp32"])
    good = ([1, 2, 3], 0, [2])
    program.run(step_of([good]), pool)
    for field, value, message in [("tokens", [1, 2, VOCAB], "vocabulary"), ("tokens", [-1, 2, 3], "vocabulary"), ("positions", [0, 1, 400], "rope"),
                                  ("slots", [0, 1, 4 * PAGE], "outside the cache"), ("slots", [64, 65, 0], "disagree"), ("starts", [0, 2], "starts"),
                                  ("starts", [0, 900000, 3], "fit"),
                                  ("lengths", [2], "fewer tokens"),
                                  ("lengths", [200], "too short"), ("select", [3], "select"), ("tables", [[9]], "outside the cache")]:
        step = step_of([good])
        setattr(step, field, np.array(value, np.int32))
        with pytest.raises(ValueError, match=message):
            program.run(step, pool)


def test_hostile_starts_and_slots_are_refused_before_they_are_used() -> None:
    program, heads, dims = toy(NativeOps(1))
    pool = KVPool(4, heads, dims, CACHES["fp32"])
    step = step_of([([1, 2], 0, [1]), ([3], 0, [2])])
    step.starts = np.array([0, 2_000_000_000, 3], np.int32)
    with pytest.raises(ValueError, match="starts"):
        program.run(step, pool)
    twice = step_of([([1, 2], 0, [1]), ([3], 0, [1])])
    with pytest.raises(ValueError, match="same slot"):
        program.run(twice, pool)


def test_spent_values_and_calls_outside_a_recording() -> None:
    ops = NativeOps(1)
    with pytest.raises(KernelError, match="recorded"):
        ops.add(None, None)  # type: ignore[arg-type]
    weight = ops.prepare(qtensor.quantize(np.ones((4, 8), np.float32), TensorSpec("fp32")), TensorSpec("fp32"))
    table = ops.constant(np.ones((4, 8)))

    def describe(ops: Any) -> Any:
        x = ops.embed(weight)
        ops.rope(x, table, 1, 8, 8)
        return ops.select(x)

    with pytest.raises(KernelError, match="in place"):
        ops.capture(describe)


def test_unknown_instruction_set() -> None:
    from octavo.errors import UsageError

    with pytest.raises(UsageError, match="possible"):
        NativeOps(isa="mmx")
