"""Question: one choice that the search has to make, and the answer to it. Kernels, threads, chunk sizes, the whole policy: all are questions.

Whatever can be asked this way is searched by the same rules (race.py): a backend for another device brings questions of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .paired import Interval


class Question(Protocol):
    """`default` and `candidates` are names of ways to do the same work."""

    @property
    def key(self) -> str:
        """Names the question, for resuming: the same key means the same work."""

    @property
    def what(self) -> str:
        """For people: `linear 1536 x 576, 4-bit in groups of 64`."""

    @property
    def rows(self) -> str:
        """Rows of a step that it is about; empty: all."""

    @property
    def default(self) -> str: ...

    @property
    def candidates(self) -> Sequence[str]: ...

    def check(self, candidate: str) -> str | None:
        """Before it is timed: None when it does the work right, else why it is rejected."""

    def seconds(self, candidate: str) -> float:
        """Do the work once as in a real step and say how long it took (per unit of work, where candidates do different amounts)."""

    def close(self) -> None:
        """The question is answered: let go of memory."""


@dataclass(frozen=True)
class Answer:
    """What came out. `chosen` is the default unless a candidate was confirmed; `best` the fastest right candidate, if any was timed; `interval`
    is the log-ratio of `best` on samples that played no part in finding it, where there are any."""

    what: str
    rows: str
    default: str
    chosen: str
    why: str
    best: str = ""
    interval: Interval | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    ranking: tuple[tuple[str, float], ...] = ()  # right candidates, fastest first, with their log-ratio

    @property
    def changed(self) -> bool:
        return self.chosen != self.default

    def to_json(self) -> dict[str, Any]:
        """For the policy file; what is not known is null."""
        known = self.interval if self.interval is not None and math.isfinite(self.interval.low) else None
        return {
            "what": self.what, "rows": self.rows, "default": self.default, "chosen": self.chosen, "why": self.why, "best": self.best or None,
            "gain": known and round(known.gain, 4), "low": known and round(math.expm1(known.low), 4), "high": known and round(math.expm1(known.high), 4),
            "pairs": known and known.pairs, "rejected": dict(self.rejected),
            "ranking": {name: round(math.expm1(ratio), 4) for name, ratio in self.ranking},
        }
