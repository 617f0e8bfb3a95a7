"""Race: two models decode in turn, so that what else happens on the machine meets both."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from ..workloads import decode
from .case import PROMPT, STEPS, WARM

if TYPE_CHECKING:
    from ..loading import LoadedModel

TURNS = 3


@dataclass(frozen=True)
class Race:
    """Tokens per second of each turn."""

    theirs: list[float]
    ours: list[float]

    @property
    def times(self) -> float:
        """How many times as fast the second is, by the medians of the turns."""
        return median(self.ours) / median(self.theirs)

    def __str__(self) -> str:
        turns = [ours / theirs for theirs, ours in zip(self.theirs, self.ours, strict=True)]
        return f"{self.times:.2f} times as fast (medians of {TURNS} turns; {min(turns):.2f} to {max(turns):.2f})"


def race(theirs: LoadedModel, ours: LoadedModel, users: int, context: int | None) -> Race:
    """With `users` sequences of `context` tokens (None: a few), fewer where a model does not take as many."""
    found = Race([], [])
    length = min(theirs.max_model_len, ours.max_model_len)
    before = max(1, min(context or PROMPT, length - STEPS - WARM - users - 2))
    for _ in range(TURNS):
        for model, rates in ((theirs, found.theirs), (ours, found.ours)):
            steps = decode(model, users, before, STEPS + WARM)[WARM:]
            rates.append(users / median(step.seconds for step in steps))
    return found
