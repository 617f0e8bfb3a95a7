"""Server-sent events: from deltas to bytes on the wire, with as little as possible between the two.

    engine step -> one wake-up of the event loop -> for each stream: take its deltas, encode, write

A token of a stream costs no task switch: while its client keeps up, the wake-up itself writes to the socket (`Wire`). Only when the client lags behind, or
the server under this one offers no wire, the stream's own coroutine sends, and waits as long as it must.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Protocol

from fastapi import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..engine.request import Delta
from ..engine.ticket import Ticket
from ..errors import OctavoError
from .answers import cancel, disconnect, unless_gone
from .problems import Problem, of_error
from .wire import Wire, wire_of

DONE = b"data: [DONE]\n\n"
MARK = "@"


class Encoder(Protocol):
    """What an answer's deltas look like as events."""

    def encode(self, place: int, delta: Delta) -> bytes:
        """The events of a delta of ticket number `place`; may be empty. Raises Problem for one that failed."""

    def end(self) -> bytes:
        """What follows the last delta."""


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


class Template:
    """`event(chunk)` for chunks that differ in one string only. `chunk(text)` makes them; the string must be the last that is "@" in it."""

    def __init__(self, chunk: dict[str, Any]) -> None:
        self._before, _, self._after = event(chunk).rpartition(json.dumps(MARK).encode())

    def fill(self, text: str) -> bytes:
        return b"%b%b%b" % (self._before, _quoted(text).encode("utf-8", "replace"), self._after)


_quoted = json.encoder.encode_basestring  # type: ignore[attr-defined]  # as json.dumps(ensure_ascii=False) writes a string


class Feed:
    """The bytes of one answer. Event loop only."""

    def __init__(self, encoder: Encoder, tickets: Sequence[Ticket]) -> None:
        self._encoder, self._tickets = encoder, tickets
        self._parts: list[bytes] = []
        self._begun = self.ended = False
        self.news = asyncio.Event()
        self._wire: Wire | None = None
        loop = asyncio.get_running_loop()
        for ticket in tickets:
            ticket.listen(loop, self._notify)
        self.news.set()                                  # deltas may have come before

    def direct(self, wire: Wire | None) -> None:
        """From now on write to `wire` as soon as something comes (None: do not), as long as it takes it."""
        self._wire = wire

    def _notify(self) -> None:
        if self._wire is None or self._wire.full:
            self.news.set()
            return
        if data := self.take():
            self._wire.write(data)
        if self.ended:
            self.news.set()

    async def first(self) -> None:
        """Wait for the first bytes. Raises the Problem of an answer that failed before."""
        while not self._parts and not self.ended:
            await self.news.wait()
            self.news.clear()
            self._gather()
        self._begun = True

    def take(self) -> bytes:
        """The bytes that are there."""
        self._gather()
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def _gather(self) -> None:
        try:
            for place, ticket in enumerate(self._tickets):
                for delta in ticket.take():
                    if not self.ended:
                        self._parts.append(self._encoder.encode(place, delta))
            if not self.ended and all(ticket.done for ticket in self._tickets):
                self._parts += (self._encoder.end(), DONE)
                self.ended = True
        except (Problem, OctavoError) as error:
            self.ended = True
            if not self._begun:
                raise
            # The status line is out already: a failure from here on can only be told as an event.
            self._parts.append(event((error if isinstance(error, Problem) else of_error(error)).body))


class EventStream(Response):
    """Sends a feed. However it ends, the tickets are cancelled (a no-op for finished ones)."""

    def __init__(self, feed: Feed, tickets: Sequence[Ticket]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Content-Type": "text/event-stream; charset=utf-8"})
        del self.headers["content-length"]
        self._feed, self._tickets = feed, tickets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            sending = asyncio.ensure_future(self._send(send, wire_of(scope)))
            gone = asyncio.ensure_future(disconnect(receive))
            try:
                await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            finally:
                sending.cancel()
                gone.cancel()
        finally:
            self._feed.direct(None)
            cancel(self._tickets)

    async def _send(self, send: Send, wire: Wire | None) -> None:
        feed = self._feed
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while True:
            if data := feed.take():
                await send({"type": "http.response.body", "body": data, "more_body": True})
                continue                                 # while it was sent, more may have come
            if feed.ended:
                break
            feed.news.clear()
            feed.direct(wire)
            await feed.news.wait()
            feed.direct(None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def stream(http: HttpRequest, encoder: Encoder, tickets: Sequence[Ticket]) -> EventStream:
    """The response. Waits for the first bytes, so that a request that fails before them still gets a status of its own."""
    feed = Feed(encoder, tickets)
    await unless_gone(http, feed.first(), tickets)
    return EventStream(feed, tickets)
