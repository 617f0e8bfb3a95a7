"""From tokens to text deltas: incremental decoding and stop strings that may span tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .request import Finish, Sampling

if TYPE_CHECKING:
    from ..text import Stream


class Output:
    """The text of one choice. Text that may turn out to be the beginning of a stop string is held back until that is known."""

    def __init__(self, sampling: Sampling, stream: Stream, end_ids: frozenset[int]) -> None:
        self.sampling, self._stream = sampling, stream
        self._ends = end_ids if not sampling.ignore_eos else frozenset()
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self._any_end = self._ends | self._stop_ids
        self._stops = tuple(s for s in sampling.stop if s)
        self._held = ""
        self.finish: Finish | None = None
        self.reason: str | int | None = None

    def push(self, token: int, generated: int) -> str:
        """Text that is certain now that `token`, the answer's `generated`-th, is known. Sets `finish` when it ends the answer."""
        if token in self._any_end:
            self.finish = Finish.STOP
            self.reason = token if token in self._stop_ids else None
            return self.flush(self._stream.push(token) if self.sampling.include_stop else "")
        text = self._stream.push(token)
        if not self._stops:
            return text
        text = self._held + text
        self._held = ""
        if generated >= self.sampling.min_tokens and (found := self._find(text)):
            start, stop = found
            self.finish, self.reason = Finish.STOP, stop
            return text[: start + len(stop)] if self.sampling.include_stop else text[:start]
        hold = self._undecided(text)
        if hold:
            text, self._held = text[:-hold], text[-hold:]
        return text

    def flush(self, more: str = "") -> str:
        """What was held back, at the end of the answer: incomplete characters too. A stop string that the last bytes complete counts."""
        text, self._held = self._held + self._stream.flush() + more, ""
        if self.finish is None and (found := self._find(text)):
            start, stop = found
            self.finish, self.reason = Finish.STOP, stop
            return text[: start + len(stop)] if self.sampling.include_stop else text[:start]
        return text

    def _find(self, text: str) -> tuple[int, str] | None:
        """The stop string that begins first, the longest of those that begin there."""
        places = [(at, -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if not places:
            return None
        at, _, stop = min(places)
        return at, stop

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
