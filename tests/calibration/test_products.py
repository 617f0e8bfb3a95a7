"""Products of bfloat16 pairs against float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import _native
from octavo.calibration import products
from octavo.formats.bf16 import from_bfloat16, to_bfloat16

WITH = [isa for isa in _native.available_isas() if _native.has_products(isa)]
WITHOUT = next(isa for isa in _native.available_isas() if not _native.has_products(isa))


def rounded(x: np.ndarray) -> np.ndarray:
    return from_bfloat16(to_bfloat16(x)).astype(np.float64)


def numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * np.exp(random.standard_normal(shape))).astype(np.float32)


def near(found: np.ndarray, expected: np.ndarray, sizes: np.ndarray) -> None:
    """Sums in float32: errors are parts of the sums of absolute products."""
    assert found.dtype == np.float32
    np.testing.assert_array_less(np.abs(found - expected), 1e-5 * sizes + 1e-30)


@pytest.mark.parametrize("isa", WITH)
@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 40), n=st.integers(1, 140), k=st.integers(1, 90), seed=st.integers(0, 99))
def test_any_shape(isa: str, m: int, n: int, k: int, seed: int) -> None:
    x, w, factors = numbers((m, k), seed), numbers((n, k), seed + 100), numbers((m,), seed + 200)
    y, g, alike = np.full((m, n), np.nan, np.float32), np.full((k, k), np.nan, np.float32), np.full((k, k), np.nan, np.float32)
    _native.product(x, w, y, isa)
    near(y, rounded(x) @ rounded(w).T, np.abs(rounded(x)) @ np.abs(rounded(w)).T)
    _native.gram(x, factors, g, isa)
    scaled = rounded(x * factors[:, None])
    near(g, scaled.T @ scaled, np.abs(scaled).T @ np.abs(scaled))
    np.testing.assert_array_equal(g, g.T)
    _native.gram(x, None, alike, isa)
    near(alike, rounded(x).T @ rounded(x), np.abs(rounded(x)).T @ np.abs(rounded(x)))


@pytest.mark.parametrize("isa", WITH)
def test_long_sums_more_rows_than_a_block_holds_and_numbers_that_are_exact(isa: str) -> None:
    x, w = numbers((700, 3000), 1), numbers((70, 3000), 2)
    y = np.empty((700, 70), np.float32)
    _native.product(x, w, y, isa)
    near(y, rounded(x) @ rounded(w).T, np.abs(rounded(x)) @ np.abs(rounded(w)).T)
    x, w = (np.random.default_rng(seed).integers(-9, 10, (50, 33)).astype(np.float32) for seed in (1, 2))
    y = np.empty((50, 50), np.float32)
    _native.product(x, w, y, isa)
    np.testing.assert_array_equal(y, x @ w.T)


@pytest.mark.parametrize("isa", WITH)
def test_nan_infinity_and_nothing(isa: str) -> None:
    x, w, y = np.zeros((7, 5), np.float32), np.ones((3, 5), np.float32), np.empty((7, 3), np.float32)
    x[1, 2], x[2, 3] = np.nan, np.inf
    _native.product(x, w, y, isa)
    assert np.isnan(y[1]).all() and np.isinf(y[2]).all() and not y[[0, 3, 4, 5, 6]].any()
    _native.product(np.empty((4, 0), np.float32), np.empty((3, 0), np.float32), y := np.full((4, 3), 1, np.float32), isa)
    assert not y.any()
    _native.gram(np.empty((0, 6), np.float32), None, g := np.full((6, 6), 1, np.float32), isa)
    assert not g.any()


@pytest.mark.parametrize("isa", WITH)
def test_shapes_that_do_not_fit_are_refused(isa: str) -> None:
    x, w = np.zeros((4, 5), np.float32), np.zeros((3, 5), np.float32)
    for bad in ((x, np.zeros((3, 6), np.float32), np.zeros((4, 3), np.float32)), (x, w, np.zeros((3, 4), np.float32))):
        with pytest.raises(ValueError, match="do not fit"):
            _native.product(*bad, isa)
    for factors, y in ((np.zeros(5, np.float32), np.zeros((5, 5), np.float32)), (None, np.zeros((4, 4), np.float32))):
        with pytest.raises(ValueError, match="do not fit"):
            _native.gram(x, factors, y, isa)


def test_an_instruction_set_without_them_says_so() -> None:
    with pytest.raises(ValueError, match="has none"):
        _native.product(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32), WITHOUT)


@pytest.mark.parametrize("isa", ["", *WITH])
def test_whatever_the_machine_has(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_pairs", lambda: isa)
    x, w, factors = numbers((33, 20), 1), numbers((9, 20), 2), np.abs(numbers((33,), 3))
    for lying in (x, np.asfortranarray(x)):
        np.testing.assert_allclose(products.product(lying, w), x.astype(np.float64) @ w.T, atol=0.02 * np.abs(x @ w.T).max())
        scaled = (x * factors[:, None]).astype(np.float64)
        np.testing.assert_allclose(products.gram(lying, factors), scaled.T @ scaled, atol=0.02 * np.abs(scaled.T @ scaled).max())
