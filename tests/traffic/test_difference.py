"""Whether two runs differ: twenty times the same server against itself, and servers that are slower by a known amount."""

from __future__ import annotations

import asyncio
import math
import random
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import UsageError
from octavo.traffic import Closed, Load, Prompt, Result, Sample, Series, Target, differences, drive, random_words, read_results, write_results
from octavo.traffic.difference import student

from .virtual import run

PROMPTS = random_words(4, 4, 10)


class Server:
    """Answers after a lognormal delay; how slow it is wanders over time, so that neighbouring requests are alike, as those of a real server are."""

    def __init__(self, seed: int, slow: float = 1.0) -> None:
        self.dice, self.slow = random.Random(seed), slow
        self.mood = self.until = 0.0

    async def ask(self, prompt: Prompt, sample: Sample) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() > self.until:                  # a new mood every second: an autoregression of order 1, 5% wide
            self.mood = 0.6 * self.mood + 0.8 * self.dice.gauss(0.0, 0.05)
            self.until = max(self.until, loop.time() - 60) + 1.0
        sample.sent = loop.time()
        base = self.slow * math.exp(self.mood)
        await asyncio.sleep(base * self.dice.lognormvariate(math.log(0.2), 0.3))
        sample.first = sample.last = loop.time()
        await asyncio.sleep(base * 0.3)
        sample.end = sample.last = loop.time()
        sample.tokens = sample.chunks = 4


def result(seed: int, slow: float = 1.0, seconds: float = 20.0) -> Result:
    async def main() -> Result:
        recording = await drive(Server(seed, slow).ask, PROMPTS, Load(Closed(8), duration=seconds))
        return Result.of("a server", Target("http://127.0.0.1:1", "m"), PROMPTS, recording, None, {})

    return run(main)


@pytest.fixture(scope="module")
def same() -> list[Series]:
    return [result(seed).series() for seed in range(40)]


def test_a_server_against_itself(same: list[Series]) -> None:
    """20 comparisons of 8 figures each; at most one may call anything different."""
    false = [i for i in range(20) if any(d.verdict in ("lower", "higher") for d in differences([same[2 * i]], [same[2 * i + 1]]))]
    assert len(false) <= 1, f"comparisons {false} told of a difference that is none"


def test_a_slower_server_is_found(same: list[Series]) -> None:
    found = {d.name: d for d in differences([same[0], same[1], same[2]], [result(100 + i, 1.2).series() for i in range(3)])}
    assert found["latency p50"].verdict == "higher" and found["tokens/s"].verdict == "lower" and found["requests/s"].verdict == "lower"
    assert found["latency p50"].low < 1.2 < found["latency p50"].high
    assert found["tokens/s"].low < 1 / 1.2 < found["tokens/s"].high


def test_runs_that_differ_from_start_to_start(same: list[Series]) -> None:
    """A machine that is 15% faster or slower each time: one run of each side says that they differ, several know better."""
    def of(factors: tuple[float, ...]) -> list[Series]:
        return [Series(r.due, r.end, r.latency * f, r.ttft * f, r.tpot * f, r.tokens, r.seconds) for r, f in zip(same, factors)]

    def found(a: list[Series], b: list[Series]) -> str:
        return differences(a, b)[0].verdict

    assert found(of((1.0,)), of((1.3,))) == "higher"
    assert found(of((1.0, 0.85, 1.15)), of((1.3, 0.9, 1.0))) == "no difference"
    assert found(of((1.0, 1.02, 0.98)), of((1.6, 1.55, 1.65))) == "higher"


def test_the_interval_holds_the_truth(same: list[Series]) -> None:
    """Of pairs that differ by 10%, the interval of the median holds 1.1 in nearly all."""
    pairs = [differences([same[i]], [result(200 + i, 1.1).series()])[0] for i in range(6)]
    assert sum(not d.low < 1.1 < d.high for d in pairs) <= 1


def test_too_few_requests_say_nothing() -> None:
    few = result(1, seconds=5.0).series()
    found = {d.name: d.verdict for d in differences([few], [few])}
    assert found["latency p99"] == "cannot say"
    none = np.zeros(0)
    nobody = Series(none, none, none, none, none, none, 5.0)
    assert {d.verdict for d in differences([nobody], [few])} == {"cannot say"}


def test_students_t() -> None:
    for confidence, freedom, value in ((0.95, 19, 2.0930), (0.95, 4, 2.7764), (0.99, 19, 2.8609), (0.99375, 19, 3.0708), (0.95, 1000, 1.9623)):
        assert student(confidence, freedom) == pytest.approx(value, rel=0.01)


def test_a_file_gives_back_what_was_measured(tmp_path: Path) -> None:
    one = result(3, seconds=5.0)
    write_results(tmp_path / "r.json", [one])
    (back,) = read_results(tmp_path / "r.json")
    assert back.to_json() == one.to_json() and back.summary.latency == one.summary.latency
    assert back.series().latency == pytest.approx(one.series().latency)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"octavo": "bench", "format": 2}', '{"octavo": "bench", "format": 1, "runs": [{}]}', "\x00"])
def test_a_file_that_holds_no_results(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UsageError, match=r"r\.json"):
        read_results(tmp_path / "r.json")
