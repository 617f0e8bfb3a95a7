"""What an error at each token counts."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.calibration.tokens import LEAST, Projection, counts, placed, stretches


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


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9, 100, 512, 2048])
def test_stretches_cover_a_sequence_and_grow(length: int) -> None:
    parts = stretches(length)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])] and parts[-1].stop == length
    sizes = [part.stop - part.start for part in parts]
    assert all(sizes) and sizes[:4] == [1] * min(length, 4) and len(parts) <= 2 * length.bit_length() + 2
    assert all(size <= max(1, part.start / 2) for size, part in zip(sizes, parts, strict=True) if part.start)


def test_stretches_get_the_share_that_reaches_further() -> None:
    random = np.random.default_rng(3)
    length = 40
    given = counts([random.uniform(0.1, 9, rows * length).astype(np.float32) for rows in (3, 3, 3)])
    reached = random.uniform(0, 5, length).astype(np.float32) * (1 + 100 * (np.arange(length) == 0))
    found = placed(given, reached)
    assert [part.shape for part in found] == [part.shape for part in given] and abs(np.concatenate(found).mean() - 1) < 1e-5
    whole, before = np.concatenate(found).reshape(-1, length), np.concatenate(given).reshape(-1, length)
    for part in stretches(length):
        assert whole[:, part].sum() / whole.sum() == pytest.approx(reached[part].sum() / reached.sum(), rel=1e-4)
        ratio = whole[:, part] / before[:, part]  # within a stretch tokens are told apart as before
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)


@pytest.mark.parametrize("reached", [0.0, np.nan, np.inf])
def test_where_nothing_is_known_of_places_all_count_alike(reached: float) -> None:
    for part in placed([np.ones(6, np.float32)], np.full(3, reached, np.float32)):
        np.testing.assert_array_equal(part, 1)
