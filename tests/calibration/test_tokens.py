"""What an error at each token counts."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.calibration.tokens import LEAST, Projection, counts


@pytest.mark.parametrize("added", [False, True])
def test_sizes_are_about_those_of_the_joined_outputs(added: bool) -> None:
    random = np.random.default_rng(1)
    x = (random.standard_normal((400, 48)) * np.exp(2 * random.standard_normal((400, 1)))).astype(np.float32)
    weights = [random.standard_normal((n, 48)).astype(np.float32) for n in ((64,) if added else (64, 7, 96))]
    biases = [random.standard_normal(len(weight)).astype(np.float32) if i != 1 else None for i, weight in enumerate(weights)]
    residual = random.standard_normal((400, 64)).astype(np.float32) * 9 if added else None
    outputs = np.concatenate([x @ weight.T + (0 if bias is None else bias) for weight, bias in zip(weights, biases, strict=True)], axis=1)
    exact = np.square(outputs + (0 if residual is None else residual)).mean(axis=1)
    ratio = Projection(weights, biases).sizes(x, residual) / exact
    assert abs(ratio.mean() - 1) < 0.1 and ratio.std() < 0.25 and ratio.min() > 0.3


def test_no_token_outweighs_the_others() -> None:
    sizes = [np.array([1e6, 1, 2], np.float32), np.array([4, 1], np.float32)]
    found = np.concatenate(counts(sizes))
    np.testing.assert_allclose(found * np.concatenate(sizes), np.full(5, found[1]), rtol=1e-6)
    assert abs(found.mean() - 1) < 1e-6


def test_hardly_any_outputs_count_as_little_ones() -> None:
    found, = counts([np.array([0, 1e-30, 1, 1, 1], np.float32)])
    assert found[0] == found[1] == pytest.approx(found[2] / LEAST, rel=1e-5)


@pytest.mark.parametrize("size", [0.0, np.nan, np.inf])
def test_where_nothing_is_known_all_count_alike(size: float) -> None:
    for part in counts([np.full(3, size, np.float32), np.full(2, size, np.float32)]):
        np.testing.assert_array_equal(part, 1)
