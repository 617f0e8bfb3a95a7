"""Against a server whose latencies are known, what is reported is what they are. Real sockets, a virtual clock: the same on any machine."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from octavo.traffic import Closed, Load, Open, Recording, ServiceLevel, Target, drive, random_words, summarize
from octavo.traffic.arrivals import Arrivals
from octavo.traffic.client import Client

from .virtual import Stub, run

PROMPTS = random_words(5, 4, 50)


class Lognormal:
    """Seconds to the first token: median 0.2, with a long tail; then 20 ms between two. `count` draws at evenly spread shares of the law, in random order:
    their percentiles are the law's, not only near them."""

    def __init__(self, count: int) -> None:
        self.shares = [min(max(i / (count - 1), 0.5 / count), 1 - 0.5 / count) for i in range(count)]
        random.Random(7).shuffle(self.shares)

    def __call__(self, dice: random.Random) -> tuple[float, float]:
        return self.first(self.shares.pop()), 0.02

    @staticmethod
    def first(share: float) -> float:
        return 0.2 * math.exp(0.6 * NormalDist().inv_cdf(share))


def steady(dice: random.Random) -> tuple[float, float]:
    return 0.1, 0.01


def record(stub: Callable[[], Stub], load: Load, timeout: float = 600.0) -> tuple[Recording, Stub]:
    async def main() -> tuple[Recording, Stub]:
        async with stub() as server:
            client = Client(Target(f"http://127.0.0.1:{server.port}", "stub", timeout=timeout))
            try:
                return await drive(client.ask, PROMPTS, load), server
            finally:
                client.close()

    return run(main)


@pytest.mark.parametrize("arrivals", [Closed(50), Open(100, "constant"), Open(100, "poisson", seed=3)], ids=str)
def test_percentiles_are_those_of_the_law(arrivals: Arrivals) -> None:
    recording, server = record(lambda: Stub(Lognormal(1000)), Load(arrivals, duration=None, requests=1000))
    summary = summarize(recording)
    assert summary.requests == 1000 and not summary.errors
    for share, name in ((0.5, "p50"), (0.9, "p90"), (0.95, "p95"), (0.98, "p98"), (0.99, "p99")):
        first = Lognormal.first(share)
        for law, found in ((first + 0.06, summary.latency), (first, summary.ttft), (0.02, summary.tpot), (0.02, summary.itl)):
            assert getattr(found, name) == pytest.approx(law, rel=0.01), name
    drawn = [first + 3 * gap for first, gap in server.drawn]
    assert sorted(s.latency for s in recording.samples) == pytest.approx(sorted(drawn), rel=1e-6), "every request's time is that of its answer"
    assert summary.answer_tokens == 4 and summary.prompt_tokens == 7


def test_a_stall_shows_in_an_open_loop() -> None:
    """Ten seconds of a minute: a sixth of the requests were due in the stall, and p99 must tell."""
    recording, _ = record(lambda: Stub(steady, stall=(1020.0, 1030.0)), Load(Open(20, "constant"), duration=60.0))
    summary = summarize(recording)
    assert summary.requests == 1200 and summary.latency_corrected is None
    assert summary.latency.p50 == pytest.approx(0.13, rel=0.01)
    due = np.arange(1200) / 20
    truth = np.where((due + 0.13 > 20) & (due < 30), np.maximum(30 - due, 0.13), 0.13)
    assert summary.latency.p99 == pytest.approx(np.quantile(truth, 0.99), rel=0.02) and summary.latency.p99 > 9


def test_a_stall_hides_in_a_closed_loop_but_for_the_correction() -> None:
    recording, _ = record(lambda: Stub(steady, stall=(1020.0, 1030.0)), Load(Closed(4), duration=60.0))
    summary = summarize(recording)
    assert summary.latency.p99 < 0.2, "four requests of hundreds: a closed loop does not see it"
    assert summary.latency_corrected is not None and summary.latency_corrected.p99 > 8
    assert summary.latency.max > 9


def test_requests_that_wait_for_a_connection_count_from_when_they_were_due() -> None:
    async def main() -> Recording:
        async with Stub(lambda dice: (1.0, 0.0), tokens=1) as server:
            client = Client(Target(f"http://127.0.0.1:{server.port}", "stub"))
            return await drive(client.ask, PROMPTS, Load(Open(10, "constant"), duration=None, requests=20), most=1)

    latencies = [s.latency for s in run(main).counted]
    assert latencies == pytest.approx([1.0 + 0.9 * i for i in range(20)], rel=0.01)


def test_rates_are_of_the_measured_time() -> None:
    """One user, 0.13 s an answer of 4 tokens: rates do not depend on the warm-up, nor on what is under way at the ends."""
    recording, _ = record(lambda: Stub(steady), Load(Closed(3), duration=13.0, warmup=2.0))
    summary = summarize(recording, ServiceLevel(ttft=0.2, latency=0.2))
    assert summary.seconds == 13.0 and summary.requests == 300
    assert summary.requests_per_s == pytest.approx(3 / 0.13, rel=0.01)
    assert summary.tokens_per_s == pytest.approx(12 / 0.13, rel=0.01) and summary.chunks_per_s == pytest.approx(summary.tokens_per_s)
    assert summary.running == pytest.approx(3, rel=0.01) and summary.goodput == pytest.approx(300 / 13)
    assert sum(summary.timeline["tokens_per_s"]) / 60 == pytest.approx(summary.tokens_per_s, rel=0.02)


def test_the_load_is_kept_up_until_the_last_request_that_counts() -> None:
    """Else the last requests of a run by time would meet a server that empties."""
    recording, _ = record(lambda: Stub(lambda dice: (dice.choice((0.1, 5.0)), 0.0), tokens=1), Load(Closed(8), duration=10.0))
    last = max(s.end for s in recording.counted)
    assert last > recording.ended
    assert any(s.due > recording.ended and not s.counted for s in recording.samples)
    assert all(s.good for s in recording.counted)


@pytest.mark.parametrize("cut", [lambda data: [data[i : i + 1] for i in range(len(data))], lambda data: [data[: len(data) // 2], data[len(data) // 2 :]]])
def test_it_does_not_matter_how_bytes_are_cut(cut: Callable[[bytes], list[bytes]]) -> None:
    async def main() -> Recording:
        async with Stub(steady, pieces=cut) as server:
            client = Client(Target(f"http://127.0.0.1:{server.port}", "stub"))
            return await drive(client.ask, PROMPTS, Load(Closed(2), duration=None, requests=10))

    found = run(main).counted
    assert [s.chunks for s in found] == [4] * 10 and all(s.good and s.tokens == 4 for s in found)


def test_errors_are_counted_by_kind() -> None:
    recording, _ = record(lambda: Stub(steady, refuse=lambda number: {1: 429, 2: 503, 4: 429}.get(number % 10, 0)), Load(Open(20), duration=None, requests=100))
    summary = summarize(recording, ServiceLevel(latency=10))
    assert summary.errors == {"http 429": 20, "http 503": 10} and "refused number" in summary.error_examples["http 429"]
    assert summary.latency.count == 70 and summary.good_share == 0.7


def test_a_request_that_never_ends_is_a_timeout() -> None:
    recording, _ = record(lambda: Stub(lambda dice: (1e6, 0.0)), Load(Closed(2), duration=None, requests=4), timeout=3.0)
    assert summarize(recording).errors == {"timeout": 4}
    assert all(s.end - s.due == pytest.approx(3.0) for s in recording.samples)


def test_a_server_that_is_not_there() -> None:
    async def main() -> Recording:
        client = Client(Target("http://127.0.0.1:9", "nobody"))
        return await drive(client.ask, PROMPTS, Load(Closed(2), duration=2.0))

    summary = summarize(run(main))
    assert set(summary.errors) == {"connect"} and summary.failed == summary.requests <= 2 * 5, "a user waits after a failure"


def test_a_schedule_depends_on_its_seed_alone() -> None:
    def some(arrivals: Open) -> list[float]:
        times = arrivals.times()
        return [next(times) for _ in range(5000)]

    assert some(Open(10, seed=1)) == some(Open(10, seed=1)) != some(Open(10, seed=2))
    gaps = np.diff(some(Open(10, seed=1)))
    assert gaps.mean() == pytest.approx(0.1, rel=0.05) and gaps.std() == pytest.approx(0.1, rel=0.1)
    assert some(Open(4, "constant"))[-1] == 4999 / 4


def test_the_progress_is_told_every_second() -> None:
    told: list[float] = []

    async def main() -> None:
        async with Stub(steady) as server:
            client = Client(Target(f"http://127.0.0.1:{server.port}", "stub"))
            await drive(client.ask, PROMPTS, Load(Closed(1), duration=5.0), on_progress=lambda r: told.append(asyncio.get_running_loop().time()))

    run(main)
    assert np.diff(told) == pytest.approx(1.0) and len(told) >= 5
