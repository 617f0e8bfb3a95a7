"""Ended: when a choice came and went, and what it was made of; kept on its ticket for traces, logs and shadow checking."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..telemetry import EngineTelemetry
    from .request import Finish
    from .sequence import Sequence


class Ended(NamedTuple):
    """Times are time.monotonic() in seconds, 0 for what it never got to. `tokens` is prompt and answer: the engine's own list, for reading."""

    choice: int
    finish: Finish
    submitted: float
    admitted: float
    first_token: float
    ended: float
    prompt_tokens: int
    cached_tokens: int
    tokens: list[int]

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens


def note_end(sequence: Sequence, finish: Finish, now: float, telemetry: EngineTelemetry) -> None:
    """Count a choice that ends at `now`, and leave its Ended on the ticket."""
    t = telemetry
    ended = Ended(sequence.choice, finish, sequence.submitted, sequence.admitted, sequence.first_token, now, sequence.prompt_length,
                  sequence.cached_tokens, sequence.tokens)
    sequence.ticket.ended.append(ended)
    t.requests.add(1, finish.value)
    t.request_seconds.observe(now - ended.submitted)
    t.prompt_length.observe(ended.prompt_tokens)
    t.answer_length.observe(ended.generated)
    if ended.first_token:
        t.prefill_seconds.observe(ended.first_token - ended.admitted)
        t.decode_seconds.observe(now - ended.first_token)
