"""Likelihood, divergence and agreement against the formulas, written out in float64 or taken from torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.quality import kl_divergence, negative_log_likelihood, same_top
from octavo.quality.measures import ROWS


def draw(rows: int, vocab: int, seed: int = 0, scale: float = 5.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, vocab)) * scale).astype(np.float32)


def test_likelihood_of_a_fair_coin() -> None:
    assert negative_log_likelihood(np.zeros((3, 2), np.float32), np.array([0, 1, 0])) == pytest.approx([np.log(2)] * 3, rel=1e-15)


@given(st.integers(1, 2 * ROWS + 3), st.integers(1, 50), st.integers(0, 1000))
def test_likelihood_equals_the_formula(rows: int, vocab: int, seed: int) -> None:
    logits = draw(rows, vocab, seed)
    targets = np.random.default_rng(seed).integers(0, vocab, rows)
    wide = logits.astype(np.float64)
    probabilities = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(negative_log_likelihood(logits, targets), -np.log(probabilities[np.arange(rows), targets]), rtol=1e-9, atol=1e-12)


def test_likelihood_equals_torch() -> None:
    logits, targets = draw(100, 1000), np.random.default_rng(1).integers(0, 1000, 100)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(targets), reduction="none")
    np.testing.assert_allclose(negative_log_likelihood(logits, targets), expected.numpy(), rtol=1e-12)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[3e4, -3e4, 0.0]], np.float32)
    assert negative_log_likelihood(logits, np.array([1])) == pytest.approx([6e4])
    assert kl_divergence(logits, logits) == pytest.approx([0.0])


def test_divergence_equals_torch() -> None:
    p, q = draw(100, 500, 0), draw(100, 500, 1)
    expected = torch.nn.functional.kl_div(torch.from_numpy(q).double().log_softmax(1), torch.from_numpy(p).double().log_softmax(1),
                                          reduction="none", log_target=True).sum(1)
    np.testing.assert_allclose(kl_divergence(p, q), expected.numpy(), rtol=1e-10)


@given(st.integers(0, 1000), st.floats(-100, 100))
def test_divergence_ignores_a_shift_and_is_never_negative(seed: int, shift: float) -> None:
    p, q = draw(5, 20, seed), draw(5, 20, seed + 1)
    assert kl_divergence(p, (p.astype(np.float64) + shift)) == pytest.approx([0.0] * 5, abs=1e-9)
    assert (kl_divergence(p, q) >= 0).all()


def test_same_top_counts_ties_for_the_lowest_id() -> None:
    first = np.array([[1, 1, 0], [0, 2, 1], [3, 0, 0]], np.float32)
    second = np.array([[2, 1, 0], [0, 1, 1], [0, 0, 1]], np.float32)
    assert same_top(first, second).tolist() == [1.0, 1.0, 0.0]


def test_inputs_are_not_changed() -> None:
    p, q = draw(3, 4, 0), draw(3, 4, 1)
    before = p.copy(), q.copy()
    negative_log_likelihood(p, np.zeros(3, int))
    kl_divergence(p, q)
    assert np.array_equal(p, before[0]) and np.array_equal(q, before[1])
