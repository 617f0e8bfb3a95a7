"""Attention on tile registers (csrc/lanes/attention_tiles.inl.h), on emulated tiles everywhere and on AMX where there is AMX; and on pairs of bfloat16
(csrc/avx512bf16) where the CPU multiplies those."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import _native, qtensor
from octavo.cache import PAGE, KVPool, Step
from octavo.kernels.native import NativeOps
from octavo.kernels.reference import read_cache
from octavo.loading import load
from octavo.schemes import TensorSpec

from .test_native import CACHES, step_of

ISAS = [*(["amx_emulated"] if "avx2" in _native.available_isas() else []), *(i for i in _native.available_isas() if i in ("amx", "avx512bf16"))]
TOKENS = 61


def ops_of(isa: str, threads: int = 1) -> NativeOps:
    ops = NativeOps(threads)
    ops.isa = isa  # the emulated tiles are not offered to users
    return ops


def vectors(heads: int, kv_heads: int, dim: int, spread: float = 1.0) -> tuple[np.ndarray, ...]:
    """What each token of a small vocabulary asks for, is found by, and says: [TOKENS, heads * dim] floats."""
    rng = np.random.default_rng(dim)
    return tuple((rng.standard_normal((TOKENS, n * dim)) * s).astype(np.float32) for n, s in ((heads, spread), (kv_heads, 1), (kv_heads, 1)))


def attend(ops: NativeOps, steps: list[Step], cache: str, qkv: tuple[np.ndarray, ...], *, heads: int, kv_heads: int, dim: int, window: int = 0,
           softcap: float = 0.0, pages: int = 40, factor: float = 1.0) -> tuple[list[np.ndarray], KVPool]:
    """One attention and nothing else: queries, keys and values of a token depend on the token alone."""
    spec = TensorSpec("fp32")
    table = ops.prepare(qtensor.quantize(np.concatenate(qkv, axis=1), spec), spec)
    widths = [a.shape[1] for a in qkv]
    picks = [np.eye(sum(widths), dtype=np.float32)[a:b] for a, b in pairwise([0, *np.cumsum(widths)])]
    weights = [ops.prepare(qtensor.quantize(pick, spec), spec) for pick in picks]

    def describe(ops: Any) -> Any:
        q, k, v = ops.linear(ops.embed(table, factor), weights)
        return ops.select(ops.attention(q, k, v, 0, heads=heads, kv_heads=kv_heads, head_dim=dim, scale=dim**-0.5, window=window, softcap=softcap))

    pool = KVPool(pages, [kv_heads], [dim], CACHES[cache])
    for array in pool.k + pool.v + pool.k_scale + pool.v_scale:  # what a page held before must not matter, NaN least of all
        array[...] = np.nan if array.dtype == np.float32 else 0x7FC0 if array.dtype == np.uint16 else 111
    program = ops.capture(describe)
    return [np.array(program.run(step, pool)) for step in steps], pool


def exact(step: Step, pool: KVPool, q: np.ndarray, *, heads: int, kv_heads: int, dim: int, window: int = 0, softcap: float = 0.0) -> np.ndarray:
    """The same in float64, from what the cache holds."""
    rows = []
    for s, length in enumerate(step.lengths):
        keys, values = read_cache(pool, 0, step.tables[s], int(length))
        for row in range(step.starts[s], step.starts[s + 1]):
            at = int(step.positions[row])
            seen = slice(max(0, at - window + 1) if window else 0, at + 1)
            query = q[step.tokens[row]].astype(np.float64).reshape(kv_heads, heads // kv_heads, dim)
            scores = np.einsum("hgd,hjd->hgj", query, keys[:, seen]) * dim**-0.5
            scores = softcap * np.tanh(scores / softcap) if softcap else scores
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            rows.append(np.einsum("hgj,hjd->hgd", weights / weights.sum(axis=-1, keepdims=True), values[:, seen]).ravel())
    return np.array(rows)


def as_bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def text(length: int, seed: int = 1) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, TOKENS, length)]


KINDS: dict[str, dict[str, Any]] = {
    "SmolLM2": {"heads": 9, "kv_heads": 3, "dim": 64},
    "groups of one": {"heads": 2, "kv_heads": 2, "dim": 128},
    "groups of eight, half a tile of dimensions": {"heads": 8, "kv_heads": 1, "dim": 80},
    "40 dimensions": {"heads": 4, "kv_heads": 2, "dim": 40},
    "odd dimensions": {"heads": 3, "kv_heads": 1, "dim": 7},
    "a window": {"heads": 6, "kv_heads": 2, "dim": 64, "window": 37},
    "a window longer than a span, softcap": {"heads": 4, "kv_heads": 2, "dim": 96, "window": 150, "softcap": 5.0},
    "more heads than a tile has rows": {"heads": 17, "kv_heads": 1, "dim": 32},
}
# Prompts that end on, before and behind the borders of pages and spans; chunks on top of them; decoded tokens
PARTS = [
    [(text(300), 0, list(range(10))), (text(31, 2), 0, [20]), (text(32, 3), 0, [21]), (text(128, 4), 0, [22, 23, 24, 25])],
    [(text(1, 5), 31, [20]), (text(1, 6), 32, [21, 26]), (text(2, 7), 128, [22, 23, 24, 25, 27]), (text(19, 8), 300, list(range(10)))],
    [(text(1, 9), 32, [20, 28]), (text(1, 10), 319, list(range(10))), (text(1, 11), 0, [29])],
]
STEPS = [step_of(parts) for parts in PARTS]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", KINDS)
def test_equals_float64(isa: str, cache: str, name: str) -> None:
    kind = KINDS[name]
    for spread in (1.0, 6.0):  # scores of about 1, and of about 6 with a few weights that count
        qkv = vectors(kind["heads"], kind["kv_heads"], kind["dim"], spread)
        for i in range(len(STEPS)):
            ours, pool = attend(ops_of(isa, 2), STEPS[: i + 1], cache, qkv, **kind)
            pairs = isa == "avx512bf16" and cache in ("bf16", "int8")  # queries are rounded before, weights after the softmax: by 2^-8 at most
            error = np.abs(ours[-1] - exact(STEPS[i], pool, as_bfloat16(qkv[0]) if pairs else qkv[0], **kind)).max()
            # values reach 4, scores 4 times the spread: 2^-20 of their product
            assert error < 2e-5 * spread + (2**-8 * np.abs(qkv[2]).max() if pairs else 0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", ["bf16", "int8"])
@pytest.mark.parametrize("name", KINDS)
def test_the_same_bits_in_any_chunks_and_company(isa: str, cache: str, name: str) -> None:
    kind = KINDS[name]
    qkv, prompt, pages = vectors(kind["heads"], kind["kv_heads"], kind["dim"]), text(200), [3, 9, 0, 1, 7, 8, 2]
    (whole,), _ = attend(ops_of(isa, 2), [step_of([(prompt, 0, pages)])], cache, qkv, **kind)
    for cuts in ([0, 1, 32, 33, 64, 127, 130, 200], [0, 16, 17, 95, 128, 129, 199, 200]):
        steps = [step_of([(prompt[a:b], a, pages)]) for a, b in pairwise(cuts)]
        chunks, _ = attend(ops_of(isa), steps, cache, qkv, **kind)
        np.testing.assert_array_equal(np.concatenate(chunks), whole)
    single = [step_of([(prompt[:120], 0, pages)]), *(step_of([(prompt[a : a + 1], a, pages)]) for a in range(120, 200))]
    alone, _ = attend(ops_of(isa), single, cache, qkv, **kind)
    np.testing.assert_array_equal(np.concatenate(alone), whole)
    other = text(90, 5)
    crowd = [step_of([(other[:60], 0, [10, 11, 12]), (prompt[:70], 0, pages), ([1], 0, [13])]),
             step_of([(prompt[70:], 70, pages), (other[60:], 60, [10, 11, 12])])]
    (first, second), _ = attend(ops_of(isa, 3), crowd, cache, qkv, **kind)
    np.testing.assert_array_equal(np.concatenate([first[60:130], second[:130]]), whole)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", ["bf16", "int8"])
@pytest.mark.parametrize("name", KINDS)
def test_a_gang_gets_the_bits_that_each_gets_alone(isa: str, cache: str, name: str) -> None:
    """Decoding sequences that begin with the same pages: 4 and 5 share a span or more, the others part from them earlier."""
    kind, shared, deep = KINDS[name], 4, 6
    qkv, prompt = vectors(kind["heads"], kind["kv_heads"], kind["dim"]), text(deep * PAGE)
    fill, decode, free = [step_of([(prompt, 0, list(range(deep)))])], [], deep
    for i, own in enumerate([0, 5, 40, 97, 130, 31, 32, 33, 64]):
        begins = shared if i % 2 else deep
        table = list(range(begins)) + list(range(free, free + own // PAGE + 1))
        free += own // PAGE + 1
        if own:
            fill.append(step_of([(text(own, i), begins * PAGE, table)]))
        decode.append(([i + 1], begins * PAGE + own, table))
    together, _ = attend(ops_of(isa), [*fill, step_of(decode)], cache, qkv, pages=free, **kind)
    alone, _ = attend(ops_of(isa), [*fill, *(step_of([part]) for part in decode)], cache, qkv, pages=free, **kind)
    np.testing.assert_array_equal(together[-1], np.concatenate(alone[len(fill) :]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", ["bf16", "int8"])
def test_nan_stays_in_its_sequence_and_does_not_vanish(isa: str, cache: str) -> None:
    qkv = tuple(a * np.float32(1e-30) for a in vectors(9, 3, 64))
    qkv[0][60] = 1e30  # times 1e30 infinite, and NaN where it is picked apart
    steps = [step_of([([1, 2, 3], 0, [0]), ([1, 60, 3], 0, [1])]), step_of([([4], 3, [0]), ([4], 3, [1])])]
    (first, second), _ = attend(ops_of(isa), steps, cache, qkv, factor=1e30, **KINDS["SmolLM2"])
    assert np.isfinite(first[:3]).all() and np.isfinite(second[0]).all()
    assert np.isnan(first[4:]).all() and np.isnan(second[1]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_smollm2_says_the_same(isa: str, smollm2_path: Path) -> None:
    """Keys on a rounding border fall to one side or the other on any two instruction sets, which moves logits by some hundredths; on avx512bf16, where
    inputs of linears are rounded too, by twice as much."""
    loaded = load(str(smollm2_path), quantization="16bit", kv_cache="bf16", use_cache=False)
    said: dict[str, tuple[list[list[int]], np.ndarray]] = {}
    for name in ("avx2", isa):
        loaded.run_on(ops_of(name, 2))
        answers, logits = [], []
        for prompt in ("The capital of France is", "Once upon a time, in a small village by the sea, there lived"):
            new, past, pool, answer = list(loaded.text.encode(prompt)), 0, loaded.new_pool(4), []
            for _ in range(8):
                logits.append(np.array(loaded.forward(step_of([(new, past, [0, 1])], every=False), pool))[0])
                past, new = past + len(new), [int(logits[-1].argmax())]
                answer += new
            answers.append(answer)
        said[name] = answers, np.array(logits)
    assert said[isa][0] == said["avx2"][0]
    difference = said[isa][1] - said["avx2"][1]
    assert np.sqrt(np.mean(difference**2)) < (0.08 if isa == "avx512bf16" else 0.02) and np.abs(difference).max() < 0.4
