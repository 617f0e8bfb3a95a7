"""Sweep: more and more users until the server gives no more tokens for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..traffic import Arrivals, Closed, Result

GAIN = 0.05  # less than this twice in a row is saturation


def sweep(run: Callable[[Arrivals], Result], most: Closed) -> Iterator[Result]:
    """1, 2, 4 ... users, at most `most`, until twice in a row the tokens per second were less than 5% above the best so far."""
    users, best, flat = 1, 0.0, 0
    while True:
        result = run(Closed(users, most.think))
        yield result
        rate = result.summary.tokens_per_s
        flat = 0 if rate > best * (1 + GAIN) else flat + 1
        best = max(best, rate)
        if flat == 2 or users >= most.users:
            return
        users = min(users * 2, most.users)


@dataclass(frozen=True)
class Saturation:
    """label   the fewest users with (nearly) the best rate
    kept      the most users of whom 95% got the service level; None without one, or where no number of users did
    """

    label: str
    tokens_per_s: float
    kept: str | None


def saturation(results: Sequence[Result]) -> Saturation:
    """Of the results of one sweep."""
    best = max(r.summary.tokens_per_s for r in results)
    first = next(r for r in results if r.summary.tokens_per_s >= best * (1 - GAIN))
    kept = [r.label for r in results if r.summary.good_share is not None and r.summary.good_share >= 0.95]
    return Saturation(first.label, first.summary.tokens_per_s, kept[-1] if kept else None)
