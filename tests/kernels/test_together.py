"""Several steps in one call give the tokens of single steps, greedy and drawn, and check every number that becomes an address."""

from __future__ import annotations

import numpy as np
import pytest

from octavo import _native
from octavo.cache import PAGE, Step
from octavo.kernels.native import NativeProgram
from octavo.kernels.op import Draws

from .test_program import POSITIONS, pool, small, step_of

PAGES = [2, 0], [1, 3]
STEPS = 12


def started(program: NativeProgram, past: tuple[int, int] = (29, 30)) -> tuple[Step, object]:
    """The first step of two sequences that decode, near the ends of their pages, and a cache that holds their past."""
    cache = pool()
    program.run(step_of(*((n, 0, pages) for n, pages in zip(past, PAGES, strict=True))), cache)
    return step_of(*((1, n, pages) for n, pages in zip(past, PAGES, strict=True))), cache


def one_by_one(program: NativeProgram, draws: Draws | None) -> list[tuple[list[int], list[float]]]:
    (step, cache), found = started(program), []
    drawer = _native.Drawer(_native.Team(1))
    for turn in range(STEPS):
        logits = program.run(step, cache)
        tokens, top = (array.copy() for array in program.best(logits))
        for row in [] if draws is None else np.flatnonzero(draws.temperature):
            how = ([float(draws.temperature[row])], [int(draws.top_k[row])], [float(draws.top_p[row])], [float(draws.min_p[row])])
            (tokens[row],) = drawer.draw(logits, [int(row)], *how, [float(draws.u[turn, row])])
        found.append((tokens.tolist(), top.tolist()))
        step.tokens[:] = tokens
        step.positions[:] += 1
        step.lengths[:] += 1
        step.slots[:] = step.tables[step.select, step.positions // PAGE] * PAGE + step.positions % PAGE
    return found


SOME = Draws(np.array([0.0, 1.5]), np.array([0, 20]), np.array([1.0, 0.95]), np.array([0.0, 0.01]), np.random.default_rng(3).random((STEPS, 2)))
BOTH = Draws(np.array([3.0, 1.5]), np.array([0, 20]), np.array([1.0, 0.95]), np.array([0.0, 0.01]), np.random.default_rng(4).random((STEPS, 2)))


@pytest.mark.parametrize("draws", [None, SOME, BOTH], ids=["greedy", "one drawn", "both drawn"])
@pytest.mark.parametrize("threads", [1, 2])
def test_tokens_and_largest_logits_are_those_of_single_steps(threads: int, draws: Draws | None) -> None:
    expected = one_by_one(small(threads), draws)
    program = small(threads)
    step, cache = started(program)
    found = program.together(step, cache, STEPS, draws)
    assert found is not None and found[0].shape == found[1].shape == (STEPS, 2)
    assert [(a.tolist(), b.tolist()) for a, b in zip(*found, strict=True)] == expected
    assert len({tuple(tokens) for tokens, _ in expected}) > 2  # not one token over and over
    assert step.lengths.tolist() == [30, 31]  # what the caller gave stays


def test_rows_that_are_not_numbers_are_not_drawn_from() -> None:
    program = small(1, quantized=False)
    step, cache = started(program)
    cache.layers[0].v[PAGES[1][0]] = np.nan
    found = program.together(step, cache, 3, BOTH)
    assert found is not None
    assert np.isfinite(found[1][:, 0]).all() and not np.isfinite(found[1][:, 1]).any()


def test_traced_programs_go_step_by_step() -> None:
    program = small(1)
    step, cache = started(program)
    program.trace(True)
    assert program.together(step, cache, 2) is None
    program.trace(False)
    assert program.together(step, cache, 2) is not None


def test_what_is_wrong_is_refused() -> None:
    program = small(1)
    step, cache = started(program)
    with pytest.raises(ValueError, match="too short for 40 steps"):
        program.together(step, cache, 40)
    with pytest.raises(ValueError, match="at least one step"):
        program.together(step, cache, 0)
    with pytest.raises(ValueError, match="one row for each sequence"):
        program.together(step_of((3, 0, [2]), (5, 30, [1, 3])), cache, 2)
    step, cache = started(program)
    step.select[:] = [1, 0]
    with pytest.raises(ValueError, match="in order"):
        program.together(step, cache, 2)
    step, cache = started(program)
    step.tables[1, 1] = 9  # not met before the third step
    with pytest.raises(ValueError, match="is outside the cache"):
        program.together(step, cache, 4)
    step, cache = started(program, (30, 30))
    step.tables[:, 1] = 3
    with pytest.raises(ValueError, match="same slot"):
        program.together(step, cache, 6)
    step, cache = started(program)
    step.positions[:] = POSITIONS - 2
    with pytest.raises(ValueError, match="rope table"):
        program.together(step, cache, 4)
    step, cache = started(program)
    with pytest.raises(ValueError, match="temperature above 0"):
        program.together(step, cache, 2, Draws(np.array([0.0, -1.0]), SOME.top_k, SOME.top_p, SOME.min_p, SOME.u))
