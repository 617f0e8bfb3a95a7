"""The native rounding of inputs in order, and the search for scales, on every instruction set against their definitions in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo import _native
from octavo.quantize.rounders import _lattice
from octavo.quantize.rounders._grid import Grid, grids, piece
from octavo.schemes import Plan

ISAS = _native.available_isas()
SHAPES = ((1, 1, "W4g32"), (70, 3, "W3g32"), (131, 49, "W4g128"), (200, 97, "W8r"), (96, 48, "Wnf4"), (64, 33, "Wmxfp4"), (160, 16, "W2g32z"),
          (48, 5, "Wnvfp4"))


def problem(k: int, rows: int, scheme: str) -> tuple[np.ndarray, np.ndarray, Grid]:
    """(weight [k, rows], a positive definite matrix [k, k], the grid of rounding to nearest)."""
    random = np.random.default_rng(k)
    x = random.standard_normal((2 * k + 4, k)) @ (np.eye(k) + 0.4 * random.standard_normal((k, k)) / np.sqrt(k))
    weight = (random.standard_normal((k, rows)) * 0.1).astype(np.float32)
    tensor, groups, free = grids(np.ascontiguousarray(weight.T), Plan.parse(scheme).default.weight)
    return weight, (x.T @ x / len(x)).astype(np.float32), piece(tensor, groups, free, slice(0, rows))


def error(weight: np.ndarray, values: np.ndarray, gram: np.ndarray, grid: Grid) -> np.ndarray:
    """float64 [rows]: the squared error of the outputs."""
    lost = weight.astype(np.float64)
    for g, columns in enumerate(grid.groups):
        lost[columns] -= values[columns].astype(np.float64) * grid.size(g)
    return np.asarray(np.einsum("kr,kl,lr->r", lost, gram.astype(np.float64), lost))


def allowed(values: np.ndarray, grid: Grid) -> bool:
    return all(np.array_equal(grid.nearest(values[columns].copy(), grid.bounds(g)), values[columns]) for g, columns in enumerate(grid.groups))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("k", "rows", "scheme"), SHAPES)
def test_one_pass_is_its_definition(k: int, rows: int, scheme: str, isa: str) -> None:
    weight, gram, grid = problem(k, rows, scheme)
    group_of = np.zeros(k, np.int32)
    for g, columns in enumerate(grid.groups):
        group_of[columns] = g
    values = grid.rounded(weight)
    now = np.concatenate([values[columns] * grid.size(g) for g, columns in enumerate(grid.groups)])
    pull, found = (weight - now).T @ gram, np.ascontiguousarray(values.T)
    moved = _native.descend_lattice(gram, 1 / np.diagonal(gram), grid.starts, pull, found, *grid.native(), isa)
    pull, found = pull.T, found.T
    mine = np.concatenate([found[columns] * grid.size(g) for g, columns in enumerate(grid.groups)])
    wide, gradient = now.astype(np.float64), gram.astype(np.float64) @ (weight.astype(np.float64) - now)
    doubtful = np.zeros(rows, bool)  # rows in which some target lay in the middle between two values: rounding decides, and all that follows differs
    for i in range(k):
        size = grid.size(int(group_of[i])).astype(np.float64)
        target = (gradient[i] / float(gram[i, i]) + wide[i]) / size
        near = [grid.nearest((target * factor).astype(np.float32), grid.bounds(int(group_of[i]))) for factor in (1 - 1e-4, 1 + 1e-4, 1)]
        doubtful |= near[0] != near[1]
        change = near[2] * size - wide[i]
        gradient -= gram[:, i : i + 1].astype(np.float64) * change
        wide[i] += change
    sure = ~doubtful
    assert allowed(found, grid) and moved == np.count_nonzero(found != values)
    assert sure.any() or rows < 3
    np.testing.assert_allclose(mine[:, sure], wide[:, sure], atol=1e-5)
    np.testing.assert_allclose(pull[:, sure], gradient[:, sure], atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("k", "rows", "scheme"), SHAPES)
def test_descent_never_loses_and_the_search_gains(k: int, rows: int, scheme: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("descend_lattice", "search_scales"):
        native = getattr(_native, name)
        monkeypatch.setattr(_native, name, lambda *given, native=native: native(*given, isa))
    weight, gram, grid = problem(k, rows, scheme)
    plain = np.eye(k, dtype=np.float32)
    at_first = error(weight, grid.rounded(weight), plain, grid)
    grid.search(weight, np.ones((k, 1), np.float32))
    values = grid.rounded(weight)
    assert error(weight, values, plain, grid).sum() <= at_first.sum() * (1 + 1e-6)
    before = error(weight, values, gram, grid)
    values = _lattice.descend(weight, values, gram, grid, 5)
    assert allowed(values, grid)
    assert (error(weight, values, gram, grid) <= before * (1 + 1e-4) + 1e-9).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("k", "rows", "scheme"), SHAPES)
def test_feedback_is_its_definition(k: int, rows: int, scheme: str, isa: str) -> None:
    weight, gram, grid = problem(k, rows, scheme)
    order = np.random.default_rng(rows).permutation(k)
    group_of = np.concatenate([np.full(columns.stop - columns.start, g) for g, columns in enumerate(grid.groups)])[order].astype(np.int32)
    shares = _lattice.shares_of(_lattice.factor(gram, order, 0.0)[0])
    found = np.empty_like(weight)
    _native.round_lattice(shares, group_of, order.astype(np.int32), np.ascontiguousarray(weight[order]), found, *grid.native(), isa)
    lost, doubtful = np.zeros((k, rows)), np.zeros(rows, bool)
    for i, at in enumerate(order):
        size = grid.size(int(group_of[i])).astype(np.float64)
        target = (weight[at] + shares[i].astype(np.float64) @ lost - lost[i]) / size
        near = [grid.nearest((target + shift).astype(np.float32), grid.bounds(int(group_of[i]))) for shift in (-1e-4, 1e-4, 0)]
        doubtful |= near[0] != near[1]
        assert (found[at] == near[2])[~doubtful].all()
        lost[i] = weight[at] - found[at] * size
    assert allowed(found, grid) and (not doubtful.all() or rows < 4)


def test_arguments_that_do_not_fit_are_refused() -> None:
    weight, gram, grid = problem(8, 4, "W4g32")
    values = grid.rounded(weight)
    group, places, alpha = np.zeros(8, np.int32), np.arange(8, dtype=np.int32), np.ones(8, np.float32)
    given: list[Any] = [gram, group, places, weight, values, *grid.native()]
    for wrong, value in ((0, gram[:4]), (1, group + 1), (2, places - 1), (4, values[:, :2].copy()), (5, grid.scales[:, :2].copy())):
        with pytest.raises((ValueError, TypeError)):
            _native.round_lattice(*(given[:wrong] + [value] + given[wrong + 1 :]))
    rows = np.ascontiguousarray(weight.T)
    given = [gram, alpha, grid.starts, rows, np.ascontiguousarray(values.T), *grid.native()]
    for wrong, value in ((0, gram[:4]), (1, alpha[:5]), (2, grid.starts + 1), (4, rows[:2].copy()), (5, grid.scales[:, :2].copy())):
        with pytest.raises((ValueError, TypeError)):
            _native.descend_lattice(*(given[:wrong] + [value] + given[wrong + 1 :]))
