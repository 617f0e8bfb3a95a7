"""Observers of activation ranges: against their definitions, on hostile values, and independent of how values arrive."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.calibration.observers import METHODS, Fixed, Observer, fixed_for
from octavo.errors import UsageError


def seen(values: np.ndarray, method: str = "mse", pieces: int = 1) -> Observer:
    observer = Observer(method)
    for part in np.array_split(values, pieces):
        observer.update(part)
    return observer


def error(values: np.ndarray, fixed: Fixed) -> float:
    codes = np.clip(np.round(values / fixed.scale) + fixed.zero_point, -127, 127)
    return float(np.mean((values - fixed.scale * (codes - fixed.zero_point)) ** 2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_order_and_batches_change_nothing(method: str, symmetric: bool) -> None:
    values = np.random.default_rng(0).standard_t(3, 20_000).astype(np.float32) + 0.3
    one = seen(values, method).range(symmetric)
    assert one == seen(values[::-1], method, 7).range(symmetric) == seen(np.sort(values), method, 3).range(symmetric)
    assert one[0] <= 0 <= one[1] and (not symmetric or one[0] == -one[1])


def test_min_max_is_exact() -> None:
    observer = seen(np.array([-3.5, 0.25, 7.125], np.float32), "min-max")
    assert observer.range(False) == (-3.5, 7.125) and observer.range(True) == (-7.125, 7.125)
    assert observer.fixed() == Fixed(7.125 / 127)


def test_percentile_leaves_out_what_is_rare() -> None:
    values = np.concatenate([np.random.default_rng(1).normal(size=100_000), [1000.0]]).astype(np.float32)
    low, high = seen(values, "percentile").range(False)
    exact = np.quantile(values, [0.00005, 0.99995])
    assert abs(low - exact[0]) < 0.6 and abs(high - exact[1]) < 0.6  # a bin is 0.25 wide beside such an outlier


@pytest.mark.parametrize("symmetric", [True, False])
def test_least_error_beats_every_other_range(symmetric: bool) -> None:
    values = np.random.default_rng(2).laplace(size=50_000).astype(np.float32)
    values = np.maximum(values, -0.2)  # as after a GELU
    best = error(values, seen(values).fixed(symmetric))
    top = float(np.abs(values).max())
    for part in np.linspace(0.1, 1, 19):
        low = -part * top if symmetric else -0.2
        assert best <= 1.02 * error(values, fixed_for(low, part * top)), part
    assert best <= 1.001 * error(values, seen(values, "min-max").fixed(symmetric))


def test_entropy_clips_a_long_tail_and_keeps_a_short_one() -> None:
    random = np.random.default_rng(3)
    tail = np.concatenate([random.normal(size=100_000), random.uniform(-60, 60, 20)]).astype(np.float32)
    assert seen(tail, "entropy").range()[1] < 30
    assert seen(random.uniform(-1, 1, 100_000).astype(np.float32), "entropy").range()[1] > 0.9


@pytest.mark.parametrize("symmetric", [True, False])
def test_exact_zeros_do_not_decide_what_entropy_clips(symmetric: bool) -> None:
    values = np.random.default_rng(4).normal(size=100_000).astype(np.float32)
    fixed = seen(np.maximum(values, 0), "entropy").fixed(symmetric)  # half of a ReLU's outputs
    best = seen(np.maximum(values, 0), "mse").fixed(symmetric)
    assert error(np.maximum(values, 0), fixed) < 2 * error(np.maximum(values, 0), best)


def test_zeros_extremes_and_what_is_not_finite() -> None:
    assert seen(np.zeros(5, np.float32)).fixed() == Fixed(1.0)
    odd = seen(np.array([np.nan, np.inf, -np.inf, 2.0], np.float32), "min-max")
    assert odd.strange == 3 and odd.range() == (-2.0, 2.0)
    wide = seen(np.array([1e-38, 3e38], np.float32), "min-max", 2)
    assert wide.seen == 2 and wide.range()[1] == pytest.approx(3e38)
    with pytest.raises(UsageError, match="no finite values"):
        Observer().range()
    with pytest.raises(UsageError, match="unknown observer"):
        Observer("average")


def test_zero_is_exact_with_a_zero_point() -> None:
    fixed = fixed_for(-0.17, 4.0)
    code = round(0 / fixed.scale) + fixed.zero_point
    assert fixed.scale * (code - fixed.zero_point) == 0 and -127 <= fixed.zero_point <= 127
    assert fixed.zero_point < -100  # most codes are for what is above
