"""Intervals: Student's t from a table, coverage by simulation, outliers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from octavo.quality.distributions import student
from octavo.tune.paired import discoveries, interval


@pytest.mark.parametrize("probability,freedom,value", [
    (0.90, 1, 3.077684), (0.90, 2, 1.885618), (0.975, 3, 3.182446), (0.975, 4, 2.776445), (0.9995, 5, 6.868827), (0.975, 10, 2.228139), (0.975, 29, 2.045230)])
def test_student_as_in_the_tables(probability: float, freedom: int, value: float) -> None:
    assert student(probability, freedom) == pytest.approx(value, rel=2e-6)


@pytest.mark.parametrize("pairs", [6, 8, 12, 24])
@pytest.mark.parametrize("draw", ["standard_normal", "laplace"])
def test_the_interval_holds_the_mean_as_often_as_it_says(pairs: int, draw: str) -> None:
    rng = np.random.default_rng(pairs)
    values = rng.standard_normal((2000, pairs)) if draw == "standard_normal" else rng.laplace(size=(2000, pairs))
    held = np.mean([(one := interval(list(row))).low <= 0 <= one.high for row in values])
    assert 0.92 < held < 0.98


def test_one_interrupt_moves_nothing() -> None:
    calm = [0.10, 0.11, 0.09, 0.10, 0.12, 0.08, 0.10, 0.11]
    hit = [*calm[:-1], -3.0]
    assert interval(hit).mean == pytest.approx(interval(calm).mean, abs=0.01)
    assert interval(hit).low > 0.05


def test_few_pairs_say_nothing() -> None:
    few = interval([0.5, 0.5, 0.5])
    assert few.low == -math.inf and few.high == math.inf and few.pairs == 3
    assert interval([]).pairs == 0
    assert interval([math.log(1.1)] * 6).gain == pytest.approx(0.1)


def test_chances_and_discoveries() -> None:
    rng = np.random.default_rng(3)
    chances = [interval(list(row)).chance for row in rng.standard_normal((2000, 8))]
    assert np.mean([p < 0.05 for p in chances]) == pytest.approx(0.05, abs=0.02) and 0.4 < np.mean(chances) < 0.6
    assert interval([0.1, 0.1, 0.1]).chance == 1.0 and interval([0.1] * 6).chance == 0.0 and interval([-0.1] * 6).chance == 1.0
    # The example of Benjamini and Hochberg 1995, section 3: four of fifteen
    published = [.0001, .0004, .0019, .0095, .0201, .0278, .0298, .0344, .0459, .3240, .4262, .5719, .6528, .7590, 1.0]
    assert discoveries(published) == [True] * 4 + [False] * 11
    assert discoveries([]) == [] and discoveries([0.2, 0.06]) == [False, False]
