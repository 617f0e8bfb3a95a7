"""Identity: which HTTP request something belongs to. Known to everything that runs for the request, log lines included."""

from __future__ import annotations

import re
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engine.ticket import Ticket

HEADER = "x-request-id"
SOUND = re.compile(r"[\x21-\x7e]{1,128}")  # what may go into headers and logs as it is


@dataclass
class Identity:
    """id: from the header x-request-id, or our own. tickets: what was submitted for it. facts: of the body, for logs and traces. trace: trace id, or ""."""

    id: str
    tickets: list[Ticket] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    trace: str = ""
    began: float = field(default_factory=time.monotonic)

    def numbers(self) -> dict[str, Any]:
        """What the engine noted of its choices that have ended: tokens, and seconds of the slowest in each phase. {} where none has."""
        ended = [one for ticket in self.tickets for one in ticket.ended]
        if not ended:
            return {}
        opened = [one for one in ended if one.first_token]
        return {
            "prompt_tokens": sum(len(ticket.request.prompt) for ticket in self.tickets),
            "cached_tokens": sum(max(e.cached_tokens for e in ticket.ended) for ticket in self.tickets if ticket.ended),
            "generated_tokens": sum(one.generated for one in ended),
            "finished": sorted({one.finish.value for one in ended}),
            "queue_seconds": round(max((one.admitted or one.ended) - one.submitted for one in ended), 6),
            **({"first_token_seconds": round(max(one.first_token - one.submitted for one in opened), 6)} if opened else {}),
        }


_current: ContextVar[Identity | None] = ContextVar("octavo_request", default=None)


def current() -> Identity | None:
    """The request that this task or thread works for; None outside of one."""
    return _current.get()


def enter(given: str) -> Identity:
    """Begin a request; `given` is what its header says, "" for none."""
    identity = Identity(given if SOUND.fullmatch(given) else f"req-{secrets.token_hex(12)}")
    _current.set(identity)
    return identity


def describe(**facts: Any) -> None:
    """Add facts of its body to the request that this task works for."""
    if (identity := current()) is not None:
        identity.facts.update(facts)
