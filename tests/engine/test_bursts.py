"""Bursts: steps in a row without a look at what came of them give the tokens that single steps give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from octavo import _native
from octavo.cache import PAGE, Step
from octavo.engine import Engine, EngineOptions, Finish, Request, Sampling
from octavo.engine.options import served_limits
from octavo.errors import CapacityError, UsageError
from octavo.kernels.op import Draws

from .conftest import HistoryModel, read, spelling, tokens, words

Make = Callable[..., Engine]


def answers(make_engine: Make, burst_seconds: float, requests: list[Request], model: Any = None, **options: Any) -> tuple[list[Any], Engine]:
    """What each request got: tokens, text and end of each choice. Stepped by hand, so that all are there from the beginning."""
    engine = make_engine(model or HistoryModel(), start=False, burst_seconds=burst_seconds, **options)
    tickets = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    found = [{choice: (tokens(deltas), words(deltas), deltas[-1].finish) for choice, deltas in read(ticket).items()} for ticket in tickets]
    return found, engine


MIXED = [
    Request((1, 2, 3), Sampling(temperature=0, max_tokens=50)),
    Request((4,) * 40, Sampling(temperature=0.9, top_p=0.9, seed=5, max_tokens=37)),
    Request((7, 8), Sampling(temperature=1.3, top_k=20, min_p=0.01, seed=6, max_tokens=64), n=2),
    Request((9,) * 33, Sampling(temperature=0, max_tokens=1)),
    Request((9,) * 31, Sampling(temperature=0.7, seed=1, frequency_penalty=0.5, max_tokens=20)),      # penalties: no bursts while it runs
    Request((11,), Sampling(temperature=0, max_tokens=30, logprobs=2)),
]


@pytest.mark.parametrize("pages", [64, 12])
def test_tokens_are_those_of_single_steps(pages: int, make_engine: Make) -> None:
    single, _ = answers(make_engine, 0, MIXED, kv_pages=pages)
    bursts, engine = answers(make_engine, 1, MIXED, kv_pages=pages)
    assert bursts == single
    assert engine.telemetry.steps.total == engine._runner.loaded.steps


class Device(HistoryModel):
    """A model on a device that computes several steps without coming back, draws tokens itself, and now and then leaves one to the CPU."""

    def __init__(self, gives_up: int = 0) -> None:
        super().__init__()
        self.gives_up, self.bursts, self.given = gives_up, 0, 0

    def ahead(self, step: Step, pool: Any, steps: int, draws: Draws | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.bursts += 1
        drawer = _native.Drawer(_native.Team(1))
        for turn in range(steps):
            logits = self.forward(step, pool)
            tokens, top = (array.copy() for array in self.best(logits))
            if draws is not None:
                for row in np.flatnonzero(draws.temperature):
                    how = ([float(draws.temperature[row])], [int(draws.top_k[row])], [float(draws.top_p[row])], [float(draws.min_p[row])])
                    (tokens[row],) = drawer.draw(logits, [int(row)], *how, [float(draws.u[turn, row])])
            self.given += 1
            if self.gives_up and self.given % self.gives_up == 0:
                return
            yield tokens, top
            if turn + 1 < steps:
                step.tokens[:] = tokens
                step.positions[:] += 1
                step.lengths[:] += 1
                step.slots[:] = step.tables[step.select, step.positions // PAGE] * PAGE + step.positions % PAGE


@pytest.mark.parametrize("gives_up", [0, 3, 1])
def test_tokens_that_a_device_chooses_are_the_same(gives_up: int, make_engine: Make) -> None:
    single, _ = answers(make_engine, 0, MIXED)
    model = Device(gives_up)
    ahead, engine = answers(make_engine, 1, MIXED, model)
    assert ahead == single and model.bursts >= 3
    assert engine.telemetry.generated_tokens.total == sum(len(choice[0]) for request in single for choice in request.values())
    if not gives_up:
        assert engine.telemetry.steps.total == model.steps


def test_a_burst_is_one_turn_of_the_engine(make_engine: Make) -> None:
    engine = make_engine(start=False, burst_seconds=1)
    ticket = engine.submit(Request((1, 2), Sampling(temperature=0, max_tokens=34)))
    turns = 0
    while engine.step():
        turns += 1
    assert len(tokens(read(ticket)[0])) == 34
    assert engine.telemetry.steps.total == 34 and turns <= 6  # the prompt, the first step whose time is taken, 32 more by sixteens
    assert engine.telemetry.generated_tokens.total == 34


def test_what_comes_after_the_end_is_dropped(make_engine: Make) -> None:
    def model() -> HistoryModel:
        return HistoryModel(script=lambda history: spelling("a short answer", 3)(history) if history[0] == 65 else None)

    requests = [Request((65, 1, 2), Sampling(temperature=0, max_tokens=60)), Request((65, 1, 2), Sampling(temperature=0, max_tokens=60, stop=("rt an",))),
                Request((66, 1), Sampling(temperature=0, max_tokens=60))]
    single, _ = answers(make_engine, 0, requests, model())
    bursts, engine = answers(make_engine, 1, requests, model())
    assert bursts == single
    assert [a[0][1:] for a in bursts[:2]] == [("a short answer", Finish.STOP), ("a sho", Finish.STOP)]
    assert engine._pool.used == 0


def test_an_answer_that_is_not_a_number_ends_alone(make_engine: Make) -> None:
    def model() -> HistoryModel:
        return HistoryModel(script=lambda history: np.full(257, np.nan, np.float32) if history[0] == 66 and len(history) == 12 else None)

    requests = [Request((66, 1), Sampling(temperature=0, max_tokens=40)), Request((67, 1), Sampling(temperature=0.8, seed=3, max_tokens=40))]
    single, _ = answers(make_engine, 0, requests, model())
    bursts, engine = answers(make_engine, 1, requests, model())
    assert bursts == single and bursts[0][0][2] is Finish.ERROR and len(bursts[0][0][0]) == 10
    assert engine.telemetry.nan_failures.total == 1


def test_who_waits_ends_the_bursts(make_engine: Make) -> None:
    engine = make_engine(start=False, burst_seconds=1, max_batch=1)
    first = engine.submit(Request((1,), Sampling(temperature=0, max_tokens=20)))
    second = engine.submit(Request((2,), Sampling(temperature=0, max_tokens=20)))
    for _ in range(5):
        engine.step()
    assert engine.telemetry.steps.total == 5  # one waits for the place of the other: single steps
    while engine.step():
        pass
    assert [len(tokens(read(t)[0])) for t in (first, second)] == [20, 20]


def test_the_option_is_checked() -> None:
    with pytest.raises(UsageError, match="burst_seconds"):
        EngineOptions(burst_seconds=-0.1)


def test_what_a_gpu_changes() -> None:
    """The cache takes the share of the GPU's memory that weights and other programs leave; bursts and steps are larger."""
    gib = 1 << 30
    options = EngineOptions(max_batch=8)
    assert options.pool_pages(gib, 320, on_device=(70 * gib, 80 * gib)) == 62          # 72 of 80 GiB, of which 10 are taken
    assert options.pool_pages(gib // 4, 320, on_device=(70 * gib, 80 * gib)) == 80     # no more than 8 sequences of 10 pages can use
    assert EngineOptions(gpu_memory_share=0.5).pool_pages(gib, 320, on_device=(70 * gib, 80 * gib)) == 30
    assert EngineOptions(kv_memory=5 * gib).pool_pages(gib, 320, on_device=(70 * gib, 80 * gib)) == 5
    with pytest.raises(CapacityError):
        EngineOptions(gpu_memory_share=0.1).pool_pages(gib, 320, on_device=(70 * gib, 80 * gib))
    with pytest.raises(UsageError, match="gpu_memory_share"):
        EngineOptions(gpu_memory_share=1.5)
    assert options.burst(True) > options.burst(False) > 0 == EngineOptions(burst_seconds=0).burst(True)
    assert all(there > here for there, here in zip(served_limits(True), served_limits(False), strict=True))
