"""When requests are sent: as soon as a user has the last answer (closed loop), or at times that do not depend on answers (open loop).

A closed loop slows down when the server does: a stall of ten seconds delays each user's one request, and the hundred that would have come meanwhile are
never sent, so percentiles look far too good ("coordinated omission", G. Tene, "How NOT to Measure Latency"). An open loop keeps to its schedule, and a
request's time counts from when it was due, sent or not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError


@dataclass(frozen=True)
class Closed:
    """`users` people, each asking again `think` seconds after the last answer."""

    users: int
    think: float = 0.0

    def __post_init__(self) -> None:
        if self.users < 1:
            raise UsageError(f"must be above 0, not {self.users}", where="users")
        if self.think < 0:
            raise UsageError(f"must be 0 or more, not {self.think}", where="think")

    def __str__(self) -> str:
        return f"{self.users} user{'s' if self.users > 1 else ''}" + (f", {self.think:g} s between" if self.think else "")


@dataclass(frozen=True)
class Open:
    """`rate` requests a second, at even distances (constant) or at random (poisson), whatever the server does."""

    rate: float
    kind: Literal["constant", "poisson"] = "poisson"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate < float("inf"):
            raise UsageError(f"must be above 0 requests a second, not {self.rate}", where="rate")

    def times(self) -> Iterator[float]:
        """Seconds from the start at which requests are due, without end, ascending."""
        dice, time, number = random.Random(self.seed), 0.0, 0
        while True:
            if self.kind == "constant":
                time = number / self.rate                # no sum: nothing adds up over a long run
            else:
                time += dice.expovariate(self.rate)
            number += 1
            yield time

    def __str__(self) -> str:
        return f"{self.rate:g} requests/s, {self.kind}"


Arrivals = Closed | Open
