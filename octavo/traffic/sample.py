"""What the client saw of one request."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field

NAN = math.nan


@dataclass(slots=True, eq=False)
class Sample:
    """Times in seconds of one clock, NaN where it did not come to that.

    A request's times count from `due`, when it should have been sent: in an open loop the schedule says when, in a closed loop it is when the user was ready.
    """

    number: int
    due: float
    sent: float = NAN
    first: float = NAN
    """The first piece of text."""
    last: float = NAN
    """The last piece of text."""
    end: float = NAN
    """The end of the answer."""
    chunks: int = 0
    """Pieces of text."""
    tokens: int = 0
    """Tokens of the answer: as the server's usage says, else the pieces."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str = ""
    """What kind of failure: connect, timeout, cut off, http 429, ...; empty where there was none."""
    detail: str = ""
    """What the server said of it."""
    gaps: array[float] = field(default_factory=lambda: array("f"))
    """Seconds between two pieces of text."""
    counted: bool = True
    """Due inside the measured time (not while warming up, nor to keep the load up at the end)."""

    @property
    def good(self) -> bool:
        return not self.error

    @property
    def latency(self) -> float:
        """From due to the end of the answer."""
        return self.end - self.due

    @property
    def ttft(self) -> float:
        """Time to first token: from due to the first piece of text."""
        return self.first - self.due

    @property
    def tpot(self) -> float:
        """Time per output token after the first, seconds; NaN of answers of one token."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else NAN
