"""The engine as its users see it: answers, ends, errors, cancellation, limits."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from octavo.engine import Delta, Engine, EngineOptions, Finish, Request, Sampling, Ticket
from octavo.errors import PromptTooLongError, QueueFullError, RequestError, StoppingError

from .conftest import EOS, HistoryModel, byte_text, read, spelling, tokens, words

Make = Callable[..., Engine]
GREEDY = Sampling(temperature=0, max_tokens=20)


def reference(prompt: tuple[int, ...], count: int) -> list[int]:
    """Greedy tokens of HistoryModel without any engine."""
    model, history = HistoryModel(), list(prompt)
    for _ in range(count):
        history.append(int(model.logits(history).argmax()))
    return history[len(prompt) :]


def prompt_of(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple((i * 7 + salt * 31 + 3) % 256 for i in range(length))


def test_many_requests_at_once_answer_as_alone(make_engine: Make) -> None:
    engine = make_engine()
    prompts = [prompt_of(length, length) for length in (1, 2, 31, 32, 33, 63, 64, 65, 200, 5, 6, 7)]
    tickets = [engine.submit(Request(p, GREEDY)) for p in prompts]
    for prompt, ticket in zip(prompts, tickets, strict=True):
        deltas = read(ticket)[0]
        assert tokens(deltas) == reference(prompt, 20)
        assert deltas[-1].finish is Finish.LENGTH


def test_prefix_is_reused_and_changes_nothing(make_engine: Make) -> None:
    engine = make_engine()
    prompt = prompt_of(100)
    first = read(engine.submit(Request(prompt, GREEDY)))[0]
    again = read(engine.submit(Request(prompt, GREEDY)))[0]
    longer = read(engine.submit(Request((*prompt, *tokens(first)[:15], 9), GREEDY)))[0]
    assert tokens(first) == tokens(again) == reference(prompt, 20)
    assert first[0].cached_tokens == 0 and again[0].cached_tokens == 96
    assert longer[0].cached_tokens == 96                     # 116 tokens: three full pages were computed before
    assert tokens(longer) == reference((*prompt, *tokens(first)[:15], 9), 20)
    other = read(engine.submit(Request((1, *prompt[1:]), GREEDY)))[0]
    assert other[0].cached_tokens == 0                       # the first token differs: nothing is the same
    assert engine.telemetry.cached_tokens.total == 192


def test_prefix_cache_can_be_off(make_engine: Make) -> None:
    engine = make_engine(prefix_cache=False)
    for _ in range(2):
        assert read(engine.submit(Request(prompt_of(100), GREEDY)))[0][0].cached_tokens == 0
    assert engine.telemetry.pages_cached.value == 0


def test_preemption_changes_nothing(make_engine: Make) -> None:
    engine = make_engine(kv_pages=12, max_batch=8)
    prompts = [prompt_of(33, i) for i in range(8)]
    sampling = Sampling(temperature=0.8, seed=5, max_tokens=120)
    tickets = [engine.submit(Request(p, sampling)) for p in prompts]
    crowded = [tokens(read(t)[0]) for t in tickets]
    assert engine.telemetry.preemptions.total > 0
    alone = [tokens(read(make_engine().submit(Request(p, sampling)))[0]) for p in prompts]
    assert crowded == alone


def test_seed_decides_the_text_whatever_else_runs(make_engine: Make) -> None:
    request = Request(prompt_of(40), Sampling(temperature=1.0, seed=7, max_tokens=30, top_p=0.9), n=3)
    alone = {c: tokens(d) for c, d in read(make_engine().submit(request)).items()}
    engine = make_engine(max_batch=5)
    noise = [engine.submit(Request(prompt_of(20 + i, i), Sampling(max_tokens=40))) for i in range(6)]
    busy = {c: tokens(d) for c, d in read(engine.submit(request)).items()}
    assert alone == busy
    assert len({tuple(t) for t in alone.values()}) == 3      # the choices differ from each other
    for ticket in noise:
        read(ticket)


def test_choices_share_the_prompt(make_engine: Make) -> None:
    engine = make_engine()
    choices = read(engine.submit(Request(prompt_of(70), Sampling(seed=1, max_tokens=5), n=4)))
    assert sorted(choices) == [0, 1, 2, 3]
    assert [choices[c][0].cached_tokens for c in range(4)] == [0, 64, 64, 64]


def test_end_token_and_stop_tokens(make_engine: Make) -> None:
    prompt = (1, 2, 3)
    engine = make_engine(HistoryModel(script=spelling("hello", 3)))
    deltas = read(engine.submit(Request(prompt, Sampling(max_tokens=50))))[0]
    assert words(deltas) == "hello" and deltas[-1].finish is Finish.STOP and deltas[-1].stop_reason is None
    assert tokens(deltas)[-1] == EOS
    letter = byte_text().encode("l")[0]
    deltas = read(engine.submit(Request(prompt, Sampling(stop_token_ids=(letter,)))))[0]
    assert words(deltas) == "he" and deltas[-1].stop_reason == letter
    deltas = read(engine.submit(Request(prompt, Sampling(ignore_eos=True, max_tokens=9))))[0]
    assert words(deltas) == "hello" and deltas[-1].finish is Finish.LENGTH and len(tokens(deltas)) == 9
    deltas = read(engine.submit(Request(prompt, Sampling(min_tokens=8, max_tokens=10, temperature=0))))[0]
    assert EOS not in tokens(deltas)[:8]


@pytest.mark.parametrize(("stop", "include", "text"), [
    (("lo w",), False, "hel"), (("lo w",), True, "hello w"), (("xyz", "o", "lo"), False, "hel"), (("world!",), False, "hello "),
    (("world!?",), False, "hello world!"), (("🙂",), False, "hello world!"),
])
def test_stop_strings(make_engine: Make, stop: tuple[str, ...], include: bool, text: str) -> None:
    engine = make_engine(HistoryModel(script=spelling("hello world!", 1)))
    deltas = read(engine.submit(Request((1,), Sampling(stop=stop, include_stop=include))))[0]
    assert words(deltas) == text
    assert deltas[-1].finish is Finish.STOP
    assert deltas[-1].stop_reason == (None if text == "hello world!" else next(s for s in stop if s in "hello world!" and s != "o"))


def test_a_possible_stop_is_held_back_until_it_is_known(make_engine: Make) -> None:
    engine = make_engine(HistoryModel(script=spelling("abXabXY", 1)))
    deltas = read(engine.submit(Request((1,), Sampling(stop=("abXY",)))))[0]
    assert words(deltas) == "abX"
    assert [d.text for d in deltas] == ["", "", "", "abX", "", "", ""]


def test_context_full_is_length(make_engine: Make) -> None:
    engine = make_engine(HistoryModel(max_model_len=64))
    deltas = read(engine.submit(Request(prompt_of(60), Sampling(temperature=0))))[0]
    assert len(tokens(deltas)) == 4 and deltas[-1].finish is Finish.LENGTH
    with pytest.raises(PromptTooLongError, match="64"):
        engine.submit(Request(prompt_of(64), Sampling()))


def test_one_sequence_may_fill_the_whole_cache(make_engine: Make) -> None:
    engine = make_engine(kv_pages=3)
    assert engine.max_model_len == 96
    assert len(tokens(read(engine.submit(Request(prompt_of(50), Sampling(temperature=0))))[0])) == 46


def test_logprobs(make_engine: Make) -> None:
    engine = make_engine()
    deltas = read(engine.submit(Request((5, 6), Sampling(temperature=0, max_tokens=4, logprobs=3, logit_bias={7: 100}))))[0]
    history = [5, 6]
    for delta in deltas:
        row = HistoryModel().logits(history).astype(np.float64)
        expected = row - np.log(np.exp(row).sum())
        (scored,) = delta.logprobs
        assert scored.token == 7                                        # the bias decides the draw, not the probabilities reported
        assert scored.logprob == pytest.approx(expected[7], abs=1e-5)
        assert [t for t, _ in scored.top] == np.argsort(-expected)[:3].tolist()
        assert [p for _, p in scored.top] == pytest.approx(np.sort(expected)[::-1][:3].tolist(), abs=1e-5)
        history.append(7)


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_echo_scores_the_prompt(make_engine: Make, max_tokens: int) -> None:
    engine = make_engine()
    prompt = prompt_of(150)
    for _ in range(2):                                                  # the second time the cache knows the prompt
        deltas = read(engine.submit(Request(prompt, Sampling(temperature=0, max_tokens=max_tokens, logprobs=1), echo_logprobs=True)))[0]
        scored = deltas[0].prompt_logprobs
        assert len(scored) == 150 and scored[0] is None
        for i in (1, 31, 32, 64, 149):
            row = HistoryModel().logits(list(prompt[:i])).astype(np.float64)
            entry = scored[i]
            assert entry is not None and entry.token == prompt[i]
            assert entry.logprob == pytest.approx(row[prompt[i]] - np.log(np.exp(row).sum()), abs=1e-5)
        assert deltas[-1].finish is Finish.LENGTH and len(tokens(deltas)) == max_tokens


def test_a_prompt_that_is_set_back_is_scored_from_its_beginning(make_engine: Make) -> None:
    """Two that decode take the pages that a long scored prompt holds before it is through."""
    engine = make_engine(HistoryModel(max_model_len=1300), kv_pages=42, max_batch_tokens=16, prefix_cache=False, start=False)
    tickets = [engine.submit(Request(prompt_of(30, i), Sampling(temperature=0, max_tokens=200))) for i in range(2)]
    prompt = prompt_of(1200)
    scored = engine.submit(Request(prompt, Sampling(max_tokens=1, temperature=0), echo_logprobs=True))
    engine.start()
    result = read(scored)[0][0].prompt_logprobs
    assert engine.telemetry.preemptions.total >= 1
    assert len(result) == 1200 and [s.token for s in result if s] == list(prompt[1:])
    row = HistoryModel().logits(list(prompt[:400])).astype(np.float64)
    entry = result[400]
    assert entry and entry.logprob == pytest.approx(row[prompt[400]] - np.log(np.exp(row).sum()), abs=1e-5)
    for ticket in tickets:
        read(ticket)


def test_cancel_frees_the_pages(make_engine: Make) -> None:
    engine = make_engine()
    ticket = engine.submit(Request(prompt_of(100), Sampling(max_tokens=400), n=2))
    for delta in ticket:
        if delta.tokens:
            ticket.cancel()
            break
    rest = read(ticket)
    assert all(d[-1].finish is Finish.CANCELLED for d in rest.values())
    deadline = time.monotonic() + 5
    while engine.telemetry.pages_used.value and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.telemetry.pages_used.value == 0 and engine.idle
    assert engine.telemetry.cancellations.total == 2
    ticket.cancel()                                                     # again, and too late: nothing happens


def test_timeout(make_engine: Make) -> None:
    model = HistoryModel()
    model.before_step = lambda step: time.sleep(0.02)
    engine = make_engine(model)
    deltas = read(engine.submit(Request((1,), Sampling(max_tokens=400), timeout=0.2)))[0]
    assert deltas[-1].finish is Finish.TIMEOUT and 1 < len(tokens(deltas)) < 40


def test_queue_is_bounded(make_engine: Make) -> None:
    engine = make_engine(start=False, max_queue=3)
    tickets = [engine.submit(Request((1,), GREEDY)) for _ in range(3)]
    with pytest.raises(QueueFullError) as refused:
        engine.submit(Request((1,), GREEDY))
    assert 1 <= refused.value.retry_after <= 60 and refused.value.status == 429
    engine.start()
    for ticket in tickets:
        assert tokens(read(ticket)[0]) == reference((1,), 20)
    assert read(engine.submit(Request((1,), GREEDY)))


def test_nan_ends_one_request_and_not_the_others(make_engine: Make) -> None:
    def script(history: list[int]) -> np.ndarray | None:
        return np.full(257, np.nan, np.float32) if history[0] == 66 and len(history) > 40 else None

    engine = make_engine(HistoryModel(script=script))
    bad = engine.submit(Request((66, *prompt_of(35)), GREEDY))
    good = engine.submit(Request((67, *prompt_of(35)), GREEDY))
    last = read(bad)[0][-1]
    assert last.finish is Finish.ERROR and last.error and "not a number" in last.error
    assert tokens(read(good)[0]) == reference((67, *prompt_of(35)), 20)
    assert engine.telemetry.nan_failures.total == 1
    assert read(engine.submit(Request((66, *prompt_of(35)), GREEDY)))[0][0].cached_tokens == 0     # its pages are not trusted


def test_a_step_that_raises_fails_its_requests_only(make_engine: Make) -> None:
    model = HistoryModel()
    engine = make_engine(model)

    def explode(step: Any) -> None:
        raise RuntimeError("kernel fell over")

    model.before_step = explode
    last = read(engine.submit(Request((1, 2), GREEDY)))[0][-1]
    assert last.finish is Finish.ERROR and last.error and "kernel fell over" in last.error
    model.before_step = lambda step: None
    assert tokens(read(engine.submit(Request((1, 2), GREEDY)))[0]) == reference((1, 2), 20)
    assert engine.telemetry.step_failures.total == 1


def test_stop_finishes_what_runs_and_refuses_the_new(make_engine: Make) -> None:
    model = HistoryModel()
    model.before_step = lambda step: time.sleep(0.005)
    engine = make_engine(model)
    ticket = engine.submit(Request((1,), GREEDY))
    stopper = threading.Thread(target=engine.stop, args=(10.0,))
    stopper.start()
    time.sleep(0.02)
    with pytest.raises(StoppingError):
        engine.submit(Request((1,), GREEDY))
    assert tokens(read(ticket)[0]) == reference((1,), 20)
    stopper.join(5)
    assert not stopper.is_alive()


def test_stop_cancels_what_does_not_finish_in_time(make_engine: Make) -> None:
    model = HistoryModel()
    model.before_step = lambda step: time.sleep(0.01)
    engine = make_engine(model)
    ticket = engine.submit(Request((1,), Sampling(max_tokens=500, temperature=0)))
    engine.stop(0.1)
    assert read(ticket)[0][-1].finish is Finish.CANCELLED


@pytest.mark.parametrize(("request_", "param"), [
    (Request(()), "prompt"), (Request((999,)), "prompt"), (Request((1,), n=99), "n"), (Request((1,), Sampling(temperature=-1)), "temperature"),
    (Request((1,), Sampling(top_p=0)), "top_p"), (Request((1,), Sampling(temperature=float("nan"))), "temperature"),
    (Request((1,), Sampling(logit_bias={999: 1.0})), "logit_bias"), (Request((1,), Sampling(max_tokens=-1)), "max_tokens"),
    (Request((1,), Sampling(grammar={"json_schema": {"type": "nonsense"}})), "response_format"),
    (Request((1,), Sampling(grammar={"regex": "("})), "response_format"),
])
def test_what_cannot_be_served_is_refused(make_engine: Make, request_: Request, param: str) -> None:
    engine = make_engine(start=False)
    with pytest.raises(RequestError) as refused:
        engine.submit(request_)
    assert refused.value.status == 400 and refused.value.param == param
    assert engine.telemetry.errors.values["invalid"] == 1


async def collect(engine: Engine, request: Request) -> list[int]:
    return [t async for delta in engine.submit(request) for t in delta.tokens]


def test_tickets_from_an_event_loop(make_engine: Make) -> None:
    engine = make_engine()

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(collect(engine, Request(prompt_of(10, i), GREEDY)) for i in range(20)))

    assert asyncio.run(main()) == [reference(prompt_of(10, i), 20) for i in range(20)]


def test_telemetry_adds_up(make_engine: Make) -> None:
    engine = make_engine()
    for i in range(3):
        read(engine.submit(Request(prompt_of(10, i), GREEDY)))
    engine.stop()
    t = engine.telemetry
    assert t.requests.values == {"length": 3}
    assert t.generated_tokens.total == 60 and t.prompt_tokens.total == 30
    assert t.first_token_seconds.count == 3 and t.token_gap_seconds.count == 57 and t.request_seconds.count == 3
    assert t.pages_free.value + t.pages_cached.value + t.pages_used.value == t.pages_total.value == 64
    assert t.steps.total == t.step_seconds.count == t.forward_seconds.count == 60
    assert [m.definition.name for m in t.metrics()][:2] == ["requests_finished", "request_errors"]


def test_counts_are_in_before_the_last_delta_is_out(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has read the end of a request finds it counted, its tokens, too, and its pages free."""
    engine = make_engine()
    seen: list[tuple[float, float, float]] = []
    put = Ticket.put

    def look(ticket: Ticket, delta: Delta) -> None:
        if delta.finish is not None:
            t = engine.telemetry
            seen.append((t.generated_tokens.total, t.requests.total, t.pages_used.value))
        put(ticket, delta)

    monkeypatch.setattr(Ticket, "put", look)
    read(engine.submit(Request(prompt_of(10), GREEDY)))
    read(engine.submit(Request(prompt_of(10), Sampling(temperature=0.0, max_tokens=7), n=2)))
    assert [seen[0], seen[2]] == [(20, 1, 0), (34, 3, 0)] and seen[1][1] == 2 and seen[1][2] > 0
    assert engine.telemetry.token_gap_seconds.count == 31


def test_options_are_checked() -> None:
    from octavo.errors import UsageError

    with pytest.raises(UsageError, match="max_batch"):
        EngineOptions(max_batch=0)


def test_nothing_of_a_finished_request_stays(make_engine: Make) -> None:
    engine = make_engine()
    kept = []
    for i in range(50):
        ticket = engine.submit(Request(prompt_of(10, i), Sampling(max_tokens=3, seed=i), n=2))
        read(ticket)
        kept.append(weakref.ref(ticket))
    del ticket
    deadline = time.monotonic() + 5
    while not engine.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    read(engine.submit(Request((1,), GREEDY)))                          # the engine's own references are to the last step
    gc.collect()
    assert sum(ref() is not None for ref in kept) <= 1


def test_an_event_loop_that_leaves_stops_the_work(make_engine: Make) -> None:
    """A client that goes away: the ticket is cancelled in the reader's `finally`, and the pages are free soon after."""
    model = HistoryModel()
    model.before_step = lambda step: time.sleep(0.002)
    engine = make_engine(model)

    async def client() -> None:
        ticket = engine.submit(Request(prompt_of(100), Sampling(max_tokens=400, temperature=0)))
        try:
            async for _ in ticket:
                pass
        finally:
            ticket.cancel()

    async def main() -> None:
        task = asyncio.create_task(client())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    deadline = time.monotonic() + 5
    while not engine.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert engine.idle and engine.telemetry.pages_used.value == 0 and engine.telemetry.cancellations.total == 1


def test_steps_that_only_decode_are_built_like_any_other(make_engine: Make) -> None:
    engine = make_engine(start=False, max_batch_tokens=64)
    for length in (1, 31, 32, 33, 64, 90):
        engine.submit(Request(prompt_of(length, length), GREEDY))
    shorter, decoding = engine._runner._decoding, 0
    for _ in range(20):
        engine._take_inbox()
        chunks = engine._scheduler.plan()
        if (fast := shorter(chunks)) is not None:
            slow, owned = engine._runner._any(chunks)
            decoding += 1
            assert fast[1] == owned
            for name, array in vars(slow).items():
                np.testing.assert_array_equal(getattr(fast[0], name), array)
                assert getattr(fast[0], name).dtype == np.int32 and getattr(fast[0], name).flags.c_contiguous
        engine._compute(chunks)
    assert decoding > 10
    engine.stop()
