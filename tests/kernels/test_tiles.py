"""The tile kernel (csrc/lanes/tiles.inl.h) gives the bits of the general one: on emulated tiles everywhere, on AMX where there is AMX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import _native, layouts, qtensor
from octavo.kernels.native import NativeOps, NativeWeight
from octavo.schemes import TensorSpec

from . import test_gangs, test_native
from .test_linear import INT8, ROW, SPECS
from .test_native import prompt, run, step_of

ISAS = [*(["amx_emulated"] if "avx2" in _native.available_isas() else []), *(i for i in _native.available_isas() if i == "amx")]
NAMES = [name for name in SPECS if not name.startswith(("fp32", "fp16", "bf16"))]


def multiply(weight: NativeWeight, x: np.ndarray, isa: str, group: int, kernel: str) -> np.ndarray:
    y = np.full((len(x), weight.n), 7, np.float32)
    _native.linear_once(weight.native, np.ascontiguousarray(x), y, isa, group, kernel=kernel)
    return y


def same(packed: layouts.Packed, x: np.ndarray, isa: str, group: int) -> np.ndarray:
    weight = NativeWeight(packed, INT8)
    ours = multiply(weight, x, isa, group, "tiles")
    for other in ([isa] if isa == "amx" else [isa, "avx2"]):
        np.testing.assert_array_equal(ours, multiply(weight, x, other, group, "general"))
    return ours


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 100), k=st.integers(1, 1300), rows=st.integers(1, 70), group=st.sampled_from([32, 64, 96, 128, 256, ROW]), seed=st.integers(0, 9))
def test_equal_bits(isa: str, name: str, n: int, k: int, rows: int, group: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    packed = layouts.pack(qtensor.quantize(rng.standard_normal((n, k)).astype(np.float32), SPECS[name]))
    same(packed, (rng.standard_normal((rows, k)) * 10.0 ** rng.integers(-20, 20, (rows, 1))).astype(np.float32), isa, group)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name,group", [("int8 g64", 64), ("int4 g64", 64), ("int4 g32 zeros", 64), ("int4 channel", ROW), ("nf4 g64", ROW)])
def test_more_rows_than_a_block_and_a_long_k(isa: str, name: str, group: int) -> None:
    rng = np.random.default_rng(3)
    for rows, n, k in ((530, 40, 320), (70, 48, 20480), (5, 16, 65536)):
        packed = layouts.pack(qtensor.quantize(rng.standard_normal((n, k), np.float32), SPECS[name]))
        same(packed, rng.standard_normal((rows, k), np.float32), isa, group)


@pytest.mark.parametrize("isa", ISAS)
def test_every_product_at_its_largest(isa: str) -> None:
    n, k = 32, 4096
    for code in (-128, 127):
        q = qtensor.QTensor(np.full((n, k), code, np.int8), np.ones((n, 1), np.float32), TensorSpec("int8", "channel"), (n, k))
        same(layouts.pack(q), np.where(np.arange(k) % np.array([[1], [2], [3], [5]]) > 0, -1, 1).astype(np.float32), isa, ROW)
    for code in (0, 15):
        q = qtensor.QTensor(np.full((n, k), code, np.uint8), np.ones((n, k // 64), np.float32), TensorSpec("int4", "group", 64, symmetric=False), (n, k),
                            zeros=np.full((n, k // 64), 7.5, np.float32))
        same(layouts.pack(q), np.ones((20, k), np.float32), isa, 64)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["int8 channel", "int4 g64", "nf4 g64"])
def test_nan_and_infinity_stay_in_their_row(isa: str, name: str) -> None:
    packed = layouts.pack(qtensor.quantize(np.random.default_rng(2).standard_normal((20, 200)).astype(np.float32), SPECS[name]))
    x = np.ones((21, 200), np.float32)
    x[1, 3], x[17, 199] = np.nan, np.inf
    for group in (64, ROW):
        y = same(packed, x, isa, group)
        assert np.isnan(y[1]).all() and not np.isfinite(y[17]).any() and np.isfinite(np.delete(y, [1, 17], axis=0)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_what_tiles_do_not_support(isa: str) -> None:
    for name, group, expected in (("bf16", 0, False), ("int8 g64", 0, False), ("int8 g64", 64, True), ("nf4 g64", 64, True)):
        weight = NativeWeight(layouts.pack(qtensor.quantize(np.ones((16, 64), np.float32), SPECS[name])), INT8)
        assert _native.linear_supported(weight.native, isa, group, 16, "tiles") is expected


def ops(threads: int, isa: str) -> NativeOps:
    made = NativeOps(threads)
    made.isa = isa  # the emulated tiles are not offered to users
    return made


STEPS = [step_of([(prompt(75), 0, [3, 1, 7, 9]), (prompt(5, 1), 0, [2])]), step_of([(prompt(30, 2), 75, [3, 1, 7, 9]), ([4], 5, [2]), ([9, 8], 0, [11])]),
         step_of([([7], 6, [2])])]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight", ["8", "8g64", "4g32", "4g64"])
def test_a_whole_model_does_not_notice(isa: str, weight: str) -> None:
    """Threads that share panels, rows that change from step to step, kernels that change with them."""
    expected = run(ops(1, "avx512vnni" if isa == "amx" else "avx2"), STEPS, weight=weight, act="int8")
    for threads in (1, 3):
        for a, b in zip(run(ops(threads, isa), STEPS, weight=weight, act="int8"), expected, strict=True):
            np.testing.assert_array_equal(a, b)


KINDS: list[dict[str, Any]] = [{}, {"heads": 3, "kv_heads": 3, "dim": 6}, {"heads": 6, "kv_heads": 1, "dim": 80},
                               {"heads": 34, "kv_heads": 2, "dim": 16, "window": 7}, {"window": 40, "softcap": 20.0}, {"dim": 64, "heads": 9, "kv_heads": 3}]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", ["bf16", "int8"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_attention_loses_nothing_on_tiles(isa: str, cache: str, kind: dict[str, Any]) -> None:
    """Queries and weights are split in two: what is left out lies below what float32 sums lose anyway. A key on a rounding border may fall to the
    other side in the second layer; that moves a few rows by more."""
    for a, b in zip(run(ops(2, isa), STEPS, cache, **kind), run(ops(1, "portable"), STEPS, cache, **kind), strict=True):
        error = np.abs(a - b) / np.abs(b).max()
        assert error.max() < 4e-3 and np.quantile(error, 0.8) < 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", ["bf16", "int8"])
@pytest.mark.parametrize("kind", [{}, {"weight": "4g32", "act": "int8"}, {"window": 9}], ids=str)
def test_attention_on_tiles_gives_the_same_bits_however_it_is_served(isa: str, cache: str, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_native, "NativeOps", lambda threads: ops(threads, isa))
    test_native.test_the_same_bits_however_it_is_served(kind, cache)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", ["bf16", "int8"])
@pytest.mark.parametrize("case", test_gangs.CASES)
def test_gangs_on_tiles(isa: str, cache: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_gangs, "NativeOps", ops)
    test_gangs.test_together_and_alone_are_the_same_bits(isa, cache, case, {"dim": 64, "heads": 9, "kv_heads": 3})
