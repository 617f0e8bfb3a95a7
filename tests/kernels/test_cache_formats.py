"""Every format of the key-value cache against float64: what is stored, what attention makes of it, and that nothing depends on company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo import _native
from octavo.cache import PAGE, KVPool, Step, Tuning, rotation
from octavo.kernels import _cache_codes as codes
from octavo.kernels.native import NativeOps
from octavo.kernels.reference import ReferenceOps, read_cache, write_cache
from octavo.schemes import CacheSpec, parse_cache

from .test_attention_tiles import exact
from .test_native import step_of

NAMES = ["C8", "Cfp8", "C4", "C4y", "K8V4", "K4V16", "Cfp8ts", "C8ts"]
SHAPES = [(9, 3, 64), (4, 4, 80), (6, 1, 96), (2, 1, 128), (4, 1, 256), (3, 3, 6), (2, 2, 33)]
ISAS = [isa for isa in _native.available_isas() if isa != "amx"] + (["amx_emulated"] if "avx2" in _native.available_isas() else [])
TOKENS = 47


def ops_of(isa: str, threads: int = 1) -> NativeOps:
    ops = NativeOps(threads)
    ops.isa = isa
    return ops


def vectors(heads: int, kv_heads: int, dim: int) -> list[np.ndarray]:
    """Queries, keys and values by token; channels of keys differ in size and share an offset, as they do in models."""
    rng = np.random.default_rng(dim)
    q, k, v = ((rng.standard_normal((TOKENS, n * dim))).astype(np.float32) for n in (heads, kv_heads, kv_heads))
    sizes = np.exp(rng.standard_normal(kv_heads * dim)).astype(np.float32)
    return [q, k * sizes + 2 * sizes, v]


def tuning_of(name: str, kv_heads: int, dim: int, qkv: list[np.ndarray]) -> Tuning:
    if name.endswith("ts"):
        return Tuning(None, *(float(np.abs(x).max()) / (448 if "fp8" in name else 127) for x in qkv[1:]))
    keys = qkv[1].reshape(TOKENS, kv_heads, dim)
    gain = keys.std(axis=0) ** 0.5
    return Tuning(np.ascontiguousarray(np.stack([keys.mean(axis=0), 1 / gain, gain, keys.std(axis=0) / gain, keys[5]]).astype(np.float32)))


def attend(ops: Any, steps: list[Step], name: str, qkv: list[np.ndarray], shape: tuple[int, int, int], tuned: bool = True, **kind: Any,
           ) -> tuple[list[np.ndarray], KVPool]:
    """One attention and nothing else: queries, keys and values of a token depend on the token alone."""
    from octavo.schemes import TensorSpec

    from .test_attention_tiles import pairwise, qtensor

    heads, kv_heads, dim = shape
    plain = TensorSpec("fp32")
    table = ops.prepare(qtensor.quantize(np.concatenate(qkv, axis=1), plain), plain)
    widths = [a.shape[1] for a in qkv]
    picks = [ops.prepare(qtensor.quantize(np.eye(sum(widths), dtype=np.float32)[a:b], plain), plain) for a, b in pairwise([0, *np.cumsum(widths)])]

    def describe(ops: Any) -> Any:
        q, k, v = ops.linear(ops.embed(table), picks)
        return ops.select(ops.attention(q, k, v, 0, heads=heads, kv_heads=kv_heads, head_dim=dim, scale=dim**-0.5, **kind))

    spec = parse_cache(name)
    pool = KVPool(12, [kv_heads], [dim], spec, [tuning_of(name, kv_heads, dim, qkv)] if tuned else None)
    for layer in pool.layers:
        for array in layer.arrays:  # what a page held before must not matter
            array[...] = np.nan if array.dtype == np.float32 else 0x7FC07FC0 if array.dtype == np.uint32 else 111
    program = ops.capture(describe)
    return [np.array(program.run(step, pool)) for step in steps], pool


def named(shape: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("heads", "kv_heads", "dim"), shape, strict=True))


def text(length: int, seed: int = 1) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, TOKENS, length)]


PAGES = [3, 0, 7, 2]
BEST = _native.available_isas()[0]


def rounds(isa: str, name: str) -> bool:
    """Whether queries and weights of attention are rounded to bfloat16 (csrc/avx512bf16), and the bits are other ones than those of float lanes."""
    return isa == "avx512bf16" and "fp8" not in name


def tolerance(isa: str, name: str, usual: float) -> float:
    return 2**-7 if rounds(isa, name) else usual


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_attention_over_what_is_stored(isa: str, name: str) -> None:
    for shape in SHAPES[:: 1 if isa == "avx2" else 3]:
        qkv = vectors(*shape)
        for kind in ({}, {"window": 37}, {"softcap": 5.0}):
            steps = [step_of([(text(66), 0, PAGES), (text(3, 2), 0, [5])]), step_of([(text(1, 3), 66, PAGES), (text(31, 4), 3, [5, 6])])]
            got, pool = attend(ops_of(isa), steps, name, qkv, shape, **kind)
            want = exact(steps[1], pool, qkv[0], **named(shape), **kind)
            np.testing.assert_allclose(got[1], want, atol=tolerance(isa, name, 3e-4) * np.abs(want).max(), err_msg=f"{shape} {kind}")


@pytest.mark.parametrize("isa", ISAS)
def test_who_sees_one_token_gets_its_value_as_it_is_stored(isa: str) -> None:
    for shape in ((3, 1, 128), (9, 3, 64)):  # every code is there, and a weight of 1 is rounded to itself
        qkv = vectors(*shape)
        step = step_of([([token], 0, [token]) for token in range(8)])
        (got,), pool = attend(ops_of(isa), [step], "C4", qkv, shape)
        want = exact(step, pool, qkv[0], **named(shape))
        np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tuned", [True, False], ids=["balanced", "plain"])
def test_the_native_cache_holds_what_the_reference_stores(name: str, tuned: bool) -> None:
    for shape in SHAPES:
        qkv = vectors(*shape)
        step = step_of([(text(PAGE + 9), 0, PAGES)])
        (ours,), mine = attend(ops_of("avx2" if "avx2" in ISAS else "portable"), [step], name, qkv, shape, tuned)
        (theirs,), truth = attend(ReferenceOps(), [step], name, qkv, shape, tuned)
        assert np.abs(ours - theirs).max() < 0.03 * np.abs(theirs).max()  # a number on a rounding border may fall to the other side in float32
        for (a, b), original in zip(zip(*(read_cache(pool, 0, step.tables[0], PAGE + 9) for pool in (mine, truth)), strict=True), qkv[1:], strict=True):
            same = np.isclose(a, b, rtol=1e-5, atol=1e-5).mean()
            assert same > 0.97, (shape, same)
            x = original[step.tokens].reshape(PAGE + 9, shape[1], shape[2]).transpose(1, 0, 2)
            assert np.sqrt(((a - x) ** 2).mean()) <= 1.02 * np.sqrt(((b - x) ** 2).mean()) + 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_whole_in_chunks_and_in_company(name: str) -> None:
    shape = (9, 3, 64)
    qkv, words = vectors(*shape), text(81)
    other = BEST if rounds(BEST, name) else "avx2" if "avx2" in ISAS else "portable"
    whole = attend(ops_of(other, 2), [step_of([(words, 0, PAGES)])], name, qkv, shape)[0][0]
    ops = NativeOps(1)
    parts = attend(ops, [step_of([(words[a:b], a, PAGES)]) for a, b in ((0, 10), (10, 11), (11, 50), (50, 80), (80, 81))], name, qkv, shape)[0]
    assert np.array_equal(np.concatenate(parts), whole)
    crowd = [step_of([(text(33, 7), 0, [1, 5]), (words[:40], 0, PAGES)]), step_of([(words[40:], 40, PAGES), ([1], 33, [1, 5])])]
    first, second = attend(NativeOps(2), crowd, name, qkv, shape)[0]
    assert np.array_equal(np.concatenate([first[33:], second[:41]]), whole)


@pytest.mark.parametrize("name", ["C8", "Cfp8", "C4", "C4y"])
def test_zeros_extremes_and_what_is_no_number(name: str) -> None:
    shape = (2, 2, 64)
    qkv = vectors(*shape)
    qkv[1][0] = qkv[2][0] = 0
    qkv[2][1] = 1e30
    qkv[2][2, :64] = -1e-30
    step = step_of([([0, 1, 2, 3], 0, PAGES)])
    (got,), pool = attend(NativeOps(1), [step], name, qkv, shape, tuned=False)
    want = exact(step, pool, qkv[0], **named(shape))
    assert np.isfinite(got).all() and not got[0].any()
    np.testing.assert_allclose(got, want, atol=tolerance(BEST, name, 1e-4) * 1e30)
    _, values = read_cache(pool, 0, step.tables[0], 4)
    np.testing.assert_allclose(values[:, 1], 1e30, rtol=0.07 if "4" in name else 0.01)


def test_a_head_with_what_is_no_number_is_lost_and_no_other() -> None:
    for name in ("C8", "Cfp8", "C4", "C4y"):
        pool = KVPool(1, [2], [64], parse_cache(name))
        k, v = np.random.default_rng(0).standard_normal((2, 4, 2, 64))
        k[2, 0, 3], v[1, 1, 5] = np.nan, np.inf
        write_cache(pool, 0, k, v, np.arange(4))
        keys, values = read_cache(pool, 0, np.array([0]), 4)
        assert np.isnan(keys[0, 2]).all() and np.isnan(values[1, 1]).all()
        assert np.isnan(keys).sum() == np.isnan(values).sum() == 64


def test_int4_errs_less_than_its_step_and_balance_helps() -> None:
    shape = (4, 2, 128)
    qkv = vectors(*shape)
    step, errors = step_of([(list(range(40)), 0, PAGES)]), {}
    x = qkv[1][:40].reshape(40, 2, 128).transpose(1, 0, 2).astype(np.float64)
    q = qkv[0][:40].reshape(40, 2, 2, 128)
    for tuned in (False, True):
        _, pool = attend(ReferenceOps(), [step], "C4", qkv, shape, tuned)
        keys, _ = read_cache(pool, 0, step.tables[0], 40)
        errors[tuned] = float((np.einsum("rhgd,hjd->hgrj", q, keys - x - (keys - x).mean(axis=1, keepdims=True)) ** 2).mean())
    assert errors[True] < 0.5 * errors[False]


def test_a_key_like_the_first_token_of_texts_is_kept_as_what_differs() -> None:
    shape = (4, 2, 64)
    qkv = vectors(*shape)
    qkv[1][:40] += 30 * qkv[1].std()  # far from the mean that the tuning knows, but for token 5, which its jump is for
    tuning = tuning_of("C4", 2, 64, vectors(*shape))
    assert tuning.balance is not None
    tuning.balance[4] = qkv[1][5].reshape(2, 64)
    mine, worst = qkv[1][3:7].reshape(4, 2, 64), {}
    for name in ("C4", "C4y"):  # symmetric codes know no jump: the sign of their scale is taken
        pool = KVPool(1, [2], [64], parse_cache(name), [tuning])
        write_cache(pool, 0, mine, qkv[2][3:7].reshape(4, 2, 64), np.arange(4))
        keys, _ = read_cache(pool, 0, np.array([0]), 4)
        worst[name] = np.abs(keys - mine.transpose(1, 0, 2)).max(axis=(0, 2))
    assert worst["C4"][2] < 1e-4 < worst["C4y"][2] and worst["C4"].max() < worst["C4y"].max()


def test_packing_is_exact() -> None:
    rng = np.random.default_rng(0)
    for dim in (1, 2, 6, 31, 32, 33, 64, 80, 100):
        x = rng.integers(0, 16, (5, dim)).astype(np.uint8)
        assert np.array_equal(codes.unpack_keys(codes.pack_keys(x), dim), x) and np.array_equal(codes.unpack_values(codes.pack_values(x), dim), x)
        x[:, : dim // 8] *= 17
        assert np.array_equal(codes.unpack_keys(codes.pack_keys(x, dim // 8), dim, dim // 8), x)
        np.testing.assert_allclose(rotation(dim) @ rotation(dim).T, np.eye(dim), atol=1e-12)
        np.testing.assert_allclose(codes.rotate(codes.rotate(x.astype(float))), x, atol=1e-12)


def test_layers_of_different_formats_and_copies_of_pages() -> None:
    spec = CacheSpec(tuple((parse_cache(a), parse_cache(b)) for a, b in (("int8", "int8"), ("bf16", "int4"), ("int4", "fp8"), ("fp32", "bf16"))))
    heads, dims = [2, 2, 3, 1], [64, 64, 80, 8]
    pool = KVPool(4, heads, dims, spec)
    assert pool.nbytes == 4 * KVPool.bytes_per_page(heads, dims, spec)
    assert KVPool.bytes_per_page(heads, dims, spec) == PAGE * (2 * (68 + 68) + 2 * (128 + 36) + 3 * (49 + 84) + 1 * (32 + 16))
    rng = np.random.default_rng(0)
    for layer, (h, d) in enumerate(zip(heads, dims, strict=True)):
        k, v = rng.standard_normal((2, 5, h, d))
        write_cache(pool, layer, k, v, np.arange(PAGE, PAGE + 5))
    pool.copy_page(1, 3)
    for layer in range(4):
        for a, b in zip(read_cache(pool, layer, np.array([1]), 5), read_cache(pool, layer, np.array([3]), 5), strict=True):
            assert np.array_equal(a, b) and a.any()
