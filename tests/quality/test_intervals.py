"""The block bootstrap: exact on cases with a known answer, and as wide as it must be."""

from __future__ import annotations

import math

import numpy as np

from octavo.quality import block_bootstrap


def test_constant_values_have_no_spread() -> None:
    assert block_bootstrap(np.full(100, 3.5), 10) == (3.5, 3.5)


def test_one_block_says_nothing() -> None:
    assert all(math.isnan(x) for x in block_bootstrap(np.arange(10.0), 10))


def test_seed_makes_it_repeatable() -> None:
    values = np.random.default_rng(0).standard_normal(1000)
    assert block_bootstrap(values, 10) == block_bootstrap(values, 10)
    assert block_bootstrap(values, 10) != block_bootstrap(values, 10, seed=1)


def test_width_of_independent_values_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).standard_normal(20_000)
    low, high = block_bootstrap(values, 10, draws=4000)
    expected = 2 * 1.96 / math.sqrt(20_000)
    assert abs((high - low) / expected - 1) < 0.1


def test_dependent_values_need_blocks() -> None:
    """Runs of 100 equal values carry the information of one: blocks of single values would claim ten times the precision."""
    values = np.repeat(np.random.default_rng(0).standard_normal(200), 100)
    naive, honest = (high - low for low, high in (block_bootstrap(values, 1), block_bootstrap(values, 100)))
    assert 8 < honest / naive < 12


def test_covers_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        values = np.repeat(np.random.default_rng(seed).standard_normal(60), 5)
        low, high = block_bootstrap(values, 5, draws=500, seed=seed)
        hits += low <= 0 <= high
    assert 180 <= hits <= 198


def test_a_short_last_block_counts_by_its_length() -> None:
    low, high = block_bootstrap(np.array([1.0, 1.0, 1.0, 1.0, 5.0]), 4)
    assert low == 1.0 and high == 5.0
