"""Keys and values into pages and attention over them, against the same in float64 from what the pages hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kernels.test_native import step_of

from octavo.cache import PAGE, KVPool, Step, Tuning
from octavo.kernels._cache_codes import LOST
from octavo.kernels.op import Problem
from octavo.kernels.reference import ReferenceOps, read_cache, write_cache
from octavo.kernels.triton import attention, program, store
from octavo.kernels.triton.cached import through
from octavo.kernels.triton.pool import GpuPool, refusal
from octavo.kernels.triton.program import now_of
from octavo.schemes import CacheSpec, TensorSpec

CACHES = {"fp32": TensorSpec("fp32"), "bf16": TensorSpec("bf16"), "int8": TensorSpec("int8", "token", dynamic=True),
          "fp8": TensorSpec("fp8e4m3", "token", dynamic=True)}
FOUR = {"int4": TensorSpec("int4", "token", symmetric=False, scale_format="bf16", dynamic=True),
        "symmetric int4": TensorSpec("int4", "token", scale_format="bf16", dynamic=True)}
STATIC = {"int8": TensorSpec("int8", "tensor"), "fp8": TensorSpec("fp8e4m3", "tensor")}
CPU = torch.device("cpu")


def numbers(rows: int, width: int, seed: int) -> np.ndarray:
    found: np.ndarray = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return found


def dirty(pool: GpuPool) -> GpuPool:
    """What a page held before must not matter, NaN least of all."""
    for layer in pool.layers:
        for array in layer.arrays:
            array.fill_(float("nan") if array.is_floating_point() else LOST if array.dtype == torch.int32 else 0x7F)
    return pool


def attended(pool: GpuPool, step: Step, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, heads: int, window: int = 0, softcap: float = 0.0,
             dtype: torch.dtype = torch.float32, table: Any = None) -> torch.Tensor:
    layer = pool.layers[0]
    now = now_of(step, pool, CPU, dtype, 0, frozenset([attention.tile_rows(heads // layer.heads, layer.dim)]))
    x, y, z = (torch.from_numpy(part).to(dtype) for part in (q, k, v))
    return through(x, y, z, layer, now, table, heads, layer.dim**-0.5, window, softcap)


def expected(pool: KVPool, step: Step, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, heads: int, window: int = 0, softcap: float = 0.0) -> np.ndarray:
    ops = ReferenceOps()
    ops.enter(step, pool)
    dim, kv_heads = pool.head_dims[0], pool.kv_heads[0]
    return ops.attention(q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), 0, heads=heads, kv_heads=kv_heads, head_dim=dim, scale=dim**-0.5,
                         window=window, softcap=softcap)


STEPS = [step_of([([1] * 37, 0, [3, 1]), ([1] * 2, 0, [2])]), step_of([([1] * 3, 37, [3, 1]), ([1], 2, [2]), ([1, 1], 0, [0])])]


@pytest.mark.parametrize("kind", [
    {"heads": 4, "kv_heads": 2, "dim": 24}, {"heads": 3, "kv_heads": 1, "dim": 6, "window": 7}, {"heads": 2, "kv_heads": 2, "dim": 64, "softcap": 20.0},
    {"heads": 6, "kv_heads": 2, "dim": 16, "window": 40, "softcap": 5.0}, {"heads": 1, "kv_heads": 1, "dim": 130},
], ids=lambda k: " ".join(f"{a}={b}" for a, b in k.items()))
def test_attention_equals_the_reference(kind: dict[str, Any]) -> None:
    heads, kv_heads, dim = kind["heads"], kind["kv_heads"], kind["dim"]
    more = {"heads": heads, "window": kind.get("window", 0), "softcap": kind.get("softcap", 0.0)}
    ours, theirs = dirty(GpuPool(9, [kv_heads], [dim], CACHES["fp32"], device="cpu")), KVPool(9, [kv_heads], [dim], CACHES["fp32"])
    for seed, step in enumerate(STEPS):
        rows = len(step.tokens)
        q, k, v = numbers(rows, heads * dim, seed), numbers(rows, kv_heads * dim, seed + 10), numbers(rows, kv_heads * dim, seed + 20)
        found, wanted = attended(ours, step, q, k, v, **more), expected(theirs, step, q, k, v, **more)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", list(CACHES))
def test_pages_hold_what_the_reference_writes(name: str) -> None:
    """Codes to the bit, but for numbers that lie on a border: the GPU divides as exactly as NumPy does."""
    ours, theirs = dirty(GpuPool(4, [2], [24], CACHES[name], device="cpu")), KVPool(4, [2], [24], CACHES[name])
    slots = np.array([5, 40, 127, 0], np.int32)
    k, v = numbers(4, 48, 1), numbers(4, 48, 2) * 100
    k[1, :24] = 0
    v[2, 30] = np.nan
    k[3, 3] = np.inf
    store.store(torch.zeros(4, 48), torch.from_numpy(k), torch.from_numpy(v), None, None, torch.zeros(4, dtype=torch.int32), torch.from_numpy(slots),
                ours.layers[0], 2)
    write_cache(theirs, 0, k.reshape(4, 2, 24).astype(np.float64), v.reshape(4, 2, 24).astype(np.float64), slots)
    page, offset = np.divmod(slots, PAGE)
    mine, other = ours.layers[0], theirs.layers[0]
    assert np.array_equal(mine.k[page, :, :, offset], other.k[page, :, :, offset], equal_nan=name == "fp32")
    assert np.array_equal(mine.v[page, :, offset], other.v[page, :, offset], equal_nan=name == "fp32")
    for one, two in ((mine.k_scale, other.k_scale), (mine.v_scale, other.v_scale)):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            assert np.array_equal(one[page, :, offset], two[page, :, offset], equal_nan=True)


@pytest.mark.parametrize(("spec", "dtype"), [(CACHES["bf16"], torch.bfloat16), (CACHES["int8"], torch.float32), (CACHES["int8"], torch.bfloat16),
                                             (CACHES["fp8"], torch.float32), (STATIC["int8"], torch.float32), (STATIC["fp8"], torch.bfloat16)])
def test_attention_over_stored_numbers(spec: TensorSpec, dtype: torch.dtype) -> None:
    tuning = [Tuning(None, 0.04, 0.03)]
    ours, theirs = dirty(GpuPool(9, [2], [32], spec, tuning, "cpu")), KVPool(9, [2], [32], spec, tuning)
    for seed, step in enumerate(STEPS):
        rows = len(step.tokens)
        q, k, v = (torch.from_numpy(numbers(rows, width, seed + 30 * i)).to(dtype).float().numpy() for i, width in enumerate((128, 64, 64)))
        found, wanted = attended(ours, step, q, k, v, heads=4, dtype=dtype), expected(theirs, step, q, k, v, heads=4)
        np.testing.assert_allclose(found.float().numpy(), wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)


def tuned(heads: int, dim: int) -> Tuning:
    """Channels of different sizes, around a mean; first keys apart from all others."""
    rng = np.random.default_rng(7)
    gain, mean, first = rng.uniform(0.3, 3, (heads, dim)), rng.standard_normal((heads, dim)), 4 * rng.standard_normal((heads, dim))
    return Tuning(np.stack([mean, 1 / gain, gain, gain * rng.uniform(0.5, 2, (heads, dim)), first]).astype(np.float32))


SHORT = [step_of([([1] * 5, 0, [3]), ([1] * 2, 0, [2])]), step_of([([1] * 2, 5, [3]), ([1], 2, [2])])]


@pytest.mark.parametrize(("name", "dim", "balanced"), [("int4", 24, True), ("symmetric int4", 16, False)])
def test_four_bits_as_the_reference_has_them(name: str, dim: int, balanced: bool) -> None:
    four_bits(name, dim, balanced, SHORT)


def four_bits(name: str, dim: int, balanced: bool, steps: list[Step]) -> None:
    """Codes and words, but for numbers on a border; then attention over them."""
    tuning = [tuned(2, dim)] if balanced else None
    ours, theirs = dirty(GpuPool(9, [2], [dim], FOUR[name], tuning, "cpu")), KVPool(9, [2], [dim], FOUR[name], tuning)
    assert ours.nbytes == theirs.nbytes
    for seed, step in enumerate(steps):
        rows = len(step.tokens)
        q, k, v = numbers(rows, 4 * dim, seed), numbers(rows, 2 * dim, seed + 30), numbers(rows, 2 * dim, seed + 60)
        if tuning is not None and (balance := tuning[0].balance) is not None:
            k = (k.reshape(rows, 2, dim) * balance[2] + balance[0]).reshape(rows, -1)
            k[0] = balance[4].reshape(-1) + 0.2 * numbers(1, 2 * dim, 5)[0]  # a text's first token, whose jump is taken away
        found, wanted = attended(ours, step, q, k, v, heads=4), expected(theirs, step, q, k, v, heads=4)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=0.02)
        page, offset = np.divmod(step.slots, PAGE)
        mine, other = ours.layers[0], theirs.layers[0]
        pairs = ((mine.k[page, :, :, offset], other.k[page, :, :, offset]), (mine.v[page, :, offset], other.v[page, :, offset]),
                 (mine.k_scale, other.k_scale), (mine.v_scale, other.v_scale))
        for at, (one, two) in enumerate(pairs):
            assert one is not None and two is not None
            assert ((one if at < 2 else one[page, :, offset]) == (two if at < 2 else two[page, :, offset])).mean() > 0.97


def test_four_bits_of_heads_that_are_no_numbers() -> None:
    for pair in ((CACHES["int8"], FOUR["int4"]), (FOUR["int4"], CACHES["bf16"])):
        spec = CacheSpec((pair,))
        ours, theirs = dirty(GpuPool(9, [1], [24], spec, device="cpu")), KVPool(9, [1], [24], spec)
        step = SHORT[0]
        q, k, v = numbers(7, 48, 0), numbers(7, 24, 1), numbers(7, 24, 2)
        k[6, 3], v[6, 1] = np.inf, np.nan  # the last row of the second sequence
        found, wanted = attended(ours, step, q, k, v, heads=2), expected(theirs, step, q, k, v, heads=2)
        assert np.isnan(found[6]).all() and np.isfinite(found[:5]).all()
        np.testing.assert_allclose(found[:5].numpy(), wanted[:5], rtol=0, atol=0.02)


def test_long_sequences_are_put_together_from_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row alone over several runs of tokens, with and without a window that begins behind the first. Runs are short here, for time."""
    for module in (attention, program):
        monkeypatch.setattr(module, "SPLIT", 64)
    length, pages = 2 * 64 + 9, list(range(5))
    for window in (0, 50):
        ours, theirs = dirty(GpuPool(5, [1], [8], CACHES["fp32"], device="cpu")), KVPool(5, [1], [8], CACHES["fp32"])
        first, then = step_of([([1] * (length - 1), 0, pages)]), step_of([([1], length - 1, pages)])
        for seed, step in ((0, first), (1, then)):
            rows = len(step.tokens)
            q, k, v = numbers(rows, 16, seed), numbers(rows, 8, seed + 5), numbers(rows, 8, seed + 9)
            found, wanted = attended(ours, step, q, k, v, heads=2, window=window), expected(theirs, step, q, k, v, heads=2, window=window)
            np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=3e-6)


def test_a_row_depends_on_no_other_sequence() -> None:
    """The same bits alone and in company, even of a sequence that is no number."""
    k, v, q = numbers(9, 24, 1), numbers(9, 24, 2), numbers(9, 48, 3)
    for past, count in ((0, 4), (3, 1)):
        alone = GpuPool(4, [1], [24], CACHES["int8"], device="cpu")
        crowd = GpuPool(4, [1], [24], CACHES["int8"], device="cpu")
        single, both = step_of([([1] * count, past, [2])]), step_of([([1] * 5, 0, [1]), ([1] * count, past, [2])])
        mine = slice(5, 5 + count)
        bad = k.copy()
        bad[2] = np.nan
        one = attended(alone, single, q[mine], k[mine], v[mine], heads=2)
        two = attended(crowd, both, q[: mine.stop], bad[: mine.stop], v[: mine.stop], heads=2)
        assert torch.equal(one, two[mine]) and two[:5].isnan().any()


def test_rotation_on_the_way_equals_rotation_before() -> None:
    angles = np.arange(200)[:, None] * (100.0 ** -(np.arange(12) / 12))
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    ours, theirs = GpuPool(9, [2], [24], CACHES["fp32"], device="cpu"), KVPool(9, [2], [24], CACHES["fp32"])
    step = STEPS[0]
    q, k, v = numbers(39, 96, 0), numbers(39, 48, 1), numbers(39, 48, 2)
    found = attended(ours, step, q, k, v, heads=4, table=torch.from_numpy(table))
    ops = ReferenceOps()
    ops.enter(step, theirs)
    wanted = expected(theirs, step, ops.rope(q.astype(np.float64), table, 4, 24, 24), ops.rope(k.astype(np.float64), table, 2, 24, 24), v, heads=4)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=3e-6)
    keys, _ = read_cache(theirs, 0, np.array([3, 1]), 37)
    stored = ours.layers[0].k[[3, 1]].transpose(1, 0, 3, 2).reshape(2, -1, 24)[:, :37]
    np.testing.assert_allclose(stored, keys, rtol=0, atol=1e-6)


def test_pages_are_copied_and_counted() -> None:
    spec = CACHES["int8"]
    pool = GpuPool(3, [2, 1], [8, 16], spec, device="cpu")
    assert pool.nbytes == 3 * KVPool.bytes_per_page([2, 1], [8, 16], spec)
    for layer in pool.layers:
        for array in layer.arrays:
            array[1] = 7
    pool.copy_page(1, 2)
    assert all(bool((array[2] == 7).all()) and not array[0].any() for layer in pool.layers for array in layer.arrays)
    assert "rotated" in str(refusal(Problem("attention", head_dim=1 << 20, cache=FOUR["int4"])))
    assert all(refusal(Problem("attention", head_dim=64, cache=spec)) is None for spec in [*CACHES.values(), *STATIC.values(), *FOUR.values()])
