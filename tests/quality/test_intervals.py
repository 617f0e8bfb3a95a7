"""Intervals: exact on cases with a known answer, and as wide as they must be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from octavo.quality import mean_interval, quantile_interval, share, share_difference
from octavo.quality.distributions import beta, student


def test_constant_values_have_no_spread() -> None:
    assert mean_interval(np.full(100, 3.5), 10) == (3.5, 3.5)


def test_one_block_says_nothing() -> None:
    assert all(math.isnan(x) for x in mean_interval(np.arange(10.0), 10))


def test_seed_makes_it_repeatable() -> None:
    values = np.random.default_rng(0).standard_normal(1000)
    assert mean_interval(values, 10) == mean_interval(values, 10)
    assert mean_interval(values, 10) != mean_interval(values, 10, seed=1)


def test_width_of_independent_values_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).standard_normal(20_000)
    low, high = mean_interval(values, 10, draws=4000)
    expected = 2 * 1.96 / math.sqrt(20_000)
    assert abs((high - low) / expected - 1) < 0.1


def test_dependent_values_need_blocks() -> None:
    """Runs of 100 equal values carry the information of one: blocks of single values would claim ten times the precision."""
    values = np.repeat(np.random.default_rng(0).standard_normal(200), 100)
    naive, honest = (high - low for low, high in (mean_interval(values, 1), mean_interval(values, 100)))
    assert 8 < honest / naive < 12


def test_few_blocks_reach_as_far_as_students_t() -> None:
    low, high = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]), 2)
    assert (low, high) == pytest.approx((2.5 - 12.7062, 2.5 + 12.7062), rel=1e-4)
    low, high = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]), 2, positive=True)
    assert (math.log(low), math.log(high)) == pytest.approx((math.log(2.5) - 12.7062 / 2.5, math.log(2.5) + 12.7062 / 2.5), rel=1e-4)


def test_a_short_last_block_counts_by_its_length() -> None:
    low, high = mean_interval(np.array([1.0, 1.0, 1.0, 1.0, 5.0]), 4)
    assert (low + high) / 2 == pytest.approx(1.8) and high - low == pytest.approx(2 * 12.7062 * 1.28, rel=1e-4)


def test_positive_means_have_positive_ends_unless_blocks_are_zero() -> None:
    values = np.random.default_rng(0).exponential(size=20) ** 3
    low, high = mean_interval(values, 1, positive=True)
    assert 0 < low < values.mean() < high
    assert all(math.isfinite(x) for x in mean_interval(np.array([0.0, 0, 1, 0, 0, 0, 2, 0, 0, 3]), 1, positive=True))


def test_nothing_lost_is_exactly_zero() -> None:
    for blocks in (2, 4, 8, 60):
        assert mean_interval(np.zeros(20 * blocks), 20, positive=True) == (0.0, 0.0)
        assert quantile_interval(np.zeros(20 * blocks), 20, 0.99) == (0.0, 0.0)


def test_all_right_of_few_is_not_certain() -> None:
    found = share(np.ones(4), 1)
    assert (found.value, found.high) == (1.0, 1.0) and found.low == pytest.approx(0.3976, abs=1e-4)  # Clopper and Pearson's
    assert share(np.zeros(4), 1).high == pytest.approx(0.6024, abs=1e-4)
    assert share(np.ones(200), 1).low > share(np.ones(200), 50).low > 0.9, "tokens of four passages count as fewer"
    assert math.isnan(share(np.ones(200), 200).low), "one passage says nothing"


def test_no_change_of_few_answers_is_not_certain() -> None:
    found = share_difference(np.zeros(4), 1)
    assert found.value == 0.0 and found.low == -found.high == pytest.approx(-0.4619, abs=1e-3)
    many = share_difference(np.zeros(400), 1)
    assert many.high < 0.01
    assert share_difference(np.ones(5), 1).low > 0


def test_an_end_beyond_the_sample_is_left_open() -> None:
    values = np.random.default_rng(0).standard_normal(100)
    low, high = quantile_interval(values, 1, 0.99)
    assert low < np.quantile(values, 0.99) and math.isnan(high), "the largest of a hundred is below the 99% point every third time"
    low, high = quantile_interval(values, 1, 0.5)
    assert np.sort(values)[37] <= low < high <= np.sort(values)[62]


def test_quantiles_of_distributions_are_scipys() -> None:
    from scipy import stats

    for a, b in ((0.5, 0.5), (4, 1), (1, 4), (2.3, 7.9), (480, 21.5), (3e4, 12)):
        for probability in (0.025, 0.5, 0.975):
            assert beta(probability, a, b) == pytest.approx(stats.beta.ppf(probability, a, b), rel=1e-6)
    for freedom in (1, 2, 3, 10, 59):
        assert student(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-8)
