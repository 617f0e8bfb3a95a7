"""The whole engine under random loads: whatever happens around a request, its answer is the one it gets alone."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine import Engine, EngineOptions, Finish, Request, Sampling, Ticket

from .conftest import HistoryModel, tokens


def make(length: int, kind: int, seed: int, answer: int, n: int, hot: bool, moment: int) -> tuple[Request, int]:
    """A request whose prompt begins like those of others, and the step at which it arrives."""
    prompt = tuple([7] * (length // 2) + [kind] * (length - length // 2))
    return Request(prompt, Sampling(temperature=0.9 if hot else 0, seed=seed, max_tokens=answer), n=n), moment


requests = st.builds(
    make, st.integers(1, 120), st.integers(0, 3), st.integers(0, 3), st.integers(1, 50), st.integers(1, 3), st.booleans(), st.integers(0, 30),
)


@cache
def alone(request_key: tuple[Any, ...]) -> dict[int, list[int]]:
    prompt, seed, hot, answer, n = request_key
    engine = Engine(HistoryModel(), EngineOptions(kv_pages=32))
    ticket = engine.submit(Request(prompt, Sampling(temperature=0.9 if hot else 0, seed=seed, max_tokens=answer), n=n))
    return collect(engine, [ticket])[0]


def collect(engine: Engine, tickets: list[Ticket]) -> list[dict[int, list[int]]]:
    while not engine.idle:
        engine.step()
    answers = []
    for ticket in tickets:
        choices: dict[int, list[int]] = {}
        for delta in ticket:
            choices.setdefault(delta.choice, []).extend(tokens([delta]))
        answers.append(choices)
    return answers


@given(st.lists(requests, min_size=1, max_size=10), st.integers(6, 24), st.integers(1, 6), st.integers(4, 200), st.booleans(), st.integers(0, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_the_answer_is_the_one_a_request_gets_alone(load: Any, pages: int, batch: int, budget: int, reuse: bool, most_cached: int, data: Any) -> None:
    engine = Engine(HistoryModel(max_model_len=512), EngineOptions(
        kv_pages=pages, max_batch=batch, max_batch_tokens=budget, prefix_cache=reuse, cached_pages=most_cached))
    tickets: dict[int, Ticket] = {}
    cancelled: set[int] = set()
    for moment in range(31):
        for index, (request, timing) in enumerate(load):
            if timing == moment:
                tickets[index] = engine.submit(request)
        if tickets and data.draw(st.integers(0, 9)) == 0:
            victim = data.draw(st.sampled_from(sorted(tickets)))
            tickets[victim].cancel()
            cancelled.add(victim)
        engine.step()
        engine._pool.check([s.pages for s in engine._scheduler.running])
    order = sorted(tickets)
    for index, answer in zip(order, collect(engine, [tickets[i] for i in order]), strict=True):
        request = load[index][0]
        s = request.sampling
        expected = alone((request.prompt, s.seed, s.temperature > 0, s.max_tokens, request.n))
        for choice, expected_tokens in expected.items():
            got = answer[choice]
            room = engine.max_model_len - len(request.prompt)
            assert got == expected_tokens[: min(len(got), room)]
            assert index in cancelled or len(got) == min(len(expected_tokens), room)
    engine._pool.check([])
    assert engine._queued == 0 and engine.telemetry.pages_used.value == 0
    assert engine.telemetry.requests.total == sum(r.n for r, _ in load)
    assert set(engine.telemetry.requests.values) <= {Finish.LENGTH.value, Finish.CANCELLED.value}
