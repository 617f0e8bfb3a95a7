"""Rounds: the default, the default again, and each candidate, timed once each in random order. What is compared always stands in one round.

The default against itself (AGAIN) shows what a comparison yields where there is nothing to find: the noise floor.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .paired import Interval, interval
from .question import Question

AGAIN = "the default again"
LEVEL = 0.95
SURE = 0.99  # to drop an arm: it is looked at again and again, and a drop is for good


@dataclass
class Samples:
    """Log-ratios t_default / t_arm, one a round, by arm; `seconds` of the default, one a round."""

    ratios: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def interval(self, arm: str, level: float = LEVEL) -> Interval:
        return interval(self.ratios.get(arm, ()), level)

    @property
    def rounds(self) -> int:
        return len(self.seconds)

    def add(self, times: dict[str, float], default: str) -> None:
        base = times[default]
        self.seconds.append(base)
        for arm, time in times.items():
            if arm != default:
                self.ratios.setdefault(arm, []).append(math.log(base / time))

    def to_json(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "ratios": self.ratios}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Samples:
        """The inverse of to_json. Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
        return Samples({str(arm): [float(v) for v in values] for arm, values in data["ratios"].items()}, [float(v) for v in data["seconds"]])


@dataclass(frozen=True)
class Rules:
    """When a race ends and what counts.

    least_gain      log-ratio below which a gain is not worth a change
    false_changes   fraction of the changes of a stage that may be chance; the probability of any where nothing is to be gained
    race, confirm   least and most rounds
    """

    least_gain: float = 0.01
    false_changes: float = 0.05
    race: tuple[int, int] = (6, 18)
    confirm: tuple[int, int] = (12, 40)


class Clock:
    """Until when to measure. `now` gives seconds; tests bring their own."""

    def __init__(self, now: Callable[[], float], until: float) -> None:
        self.now, self.until = now, until

    @property
    def left(self) -> float:
        return self.until - self.now()

    def part(self, seconds: float) -> Clock:
        """The next `seconds`, or what is left if that is less."""
        return Clock(self.now, min(self.until, self.now() + seconds))


def play(question: Question, arms: Iterable[str], samples: Samples, rng: random.Random) -> None:
    """One round, added to `samples` when all of it is there."""
    order = [question.default, AGAIN, *arms]
    rng.shuffle(order)
    samples.add({arm: question.seconds(question.default if arm == AGAIN else arm) for arm in order}, question.default)


def warm_up(question: Question, arms: Iterable[str]) -> None:
    """Each arm once, untimed: pages are touched, buffers grown, threads awake."""
    for arm in (question.default, *arms):
        question.seconds(arm)


def race(question: Question, arms: list[str], samples: Samples, rules: Rules, clock: Clock, rng: random.Random, on_round: Callable[[Samples], None]) -> None:
    """Rounds until a leader stands out, nobody can gain any more, or rounds or time are up. Arms that cannot gain are dropped on the way."""
    least, most = rules.race
    alive = still_in(arms, samples, rules)
    while alive and samples.rounds < most and (clock.left > 0 or samples.rounds == 0):
        play(question, alive, samples, rng)
        on_round(samples)
        if samples.rounds >= least and samples.rounds % 2 == 0:
            alive = still_in(arms, samples, rules)
            if len(alive) == 1 and samples.interval(alive[0]).low > rules.least_gain:
                return


def still_in(arms: list[str], samples: Samples, rules: Rules) -> list[str]:
    """Arms that may still win: not surely below the least gain, and not surely behind the leader (in the rounds that both were in)."""
    if not arms or samples.rounds < rules.race[0]:
        return arms
    leader = max(arms, key=lambda arm: samples.interval(arm).mean)

    def behind(arm: str) -> float:
        pairs = zip(samples.ratios[arm], samples.ratios[leader], strict=False)
        return interval([mine - best for mine, best in pairs], SURE).high

    return [arm for arm in arms if samples.interval(arm, SURE).high > rules.least_gain and (arm == leader or behind(arm) > 0)]


def rounds_to_confirm(found: Interval, rules: Rules) -> int:
    """Fresh rounds after which the interval should reach half as far as the gain that the race saw; fixed before they are played."""
    least, most = rules.confirm
    if found.mean <= 0 or not math.isfinite(found.low):
        return most
    wanted = found.pairs * ((found.mean - found.low) / (found.mean / 2)) ** 2
    return min(most, max(least, math.ceil(wanted)))
