"""Questions with known answers: on a simulated clock, with the noise of a shared machine."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from octavo.tune.question import Question
from octavo.tune.race import Samples


class Timeline:
    """Seconds that pass only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Planted:
    """Candidates with known speeds (relative to the default) and faults. Noise: slow drift shared by neighbours, jitter, and rare interrupts."""

    def __init__(self, timeline: Timeline, speeds: dict[str, float], wrong: Sequence[str] = (), *, base: float = 0.01, noise: float = 0.03, seed: int = 0,
                 name: str = "planted") -> None:
        self.timeline, self.speeds, self.wrong, self.base, self.noise = timeline, {"usual": 1.0, **speeds}, wrong, base, noise
        self.rng, self.key, self.what, self.rows, self.default, self.candidates = random.Random(seed), name, name, "1", "usual", tuple(speeds)
        self.drift, self.timed = 0.0, dict.fromkeys(self.speeds, 0)

    def check(self, candidate: str) -> str | None:
        return "is wrong" if candidate in self.wrong else None

    def seconds(self, candidate: str) -> float:
        self.timed[candidate] += 1
        self.drift = 0.95 * self.drift + self.rng.gauss(0, self.noise)
        time = self.base / self.speeds[candidate] * 2.718 ** (self.drift + self.rng.gauss(0, self.noise))
        if self.rng.random() < 0.05:
            time *= 1.5 + self.rng.random()
        self.timeline.now += time
        return time

    def close(self) -> None:
        pass


class Silent:
    """Watches nothing."""

    def asking(self, question: Question, stage: str, number: int, of: int) -> None:
        pass

    def played(self, question: Question, samples: Samples) -> None:
        pass


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()
