"""Client: sends requests over connections that it keeps, and notes when what came back. One event loop, no task for each byte.

Bytes are stamped in the callback that the event loop gives them to, so nothing of this client stands between the socket and the clock but the loop itself.
"""

from __future__ import annotations

import asyncio

from .answer import Answer
from .prompts import Prompt
from .response import Malformed
from .sample import Sample
from .target import Target

IDLE = 2.0  # seconds after which a connection is not used again: servers close theirs after about five


class _Connection(asyncio.Protocol):
    """A connection with at most one request under way."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self.answer: Answer | None = None
        self.done: asyncio.Future[None] | None = None
        self.gone = False
        self.used = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.answer is None:                          # bytes that nobody asked for
            self.close()
            return
        try:
            self.answer.feed(data, self.loop.time())
        except Malformed as error:
            self.answer.fail("bad answer", str(error))
            self.close()
        if self.answer.response.ended or self.gone:
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        if self.answer is not None:
            self.answer.closed(self.loop.time())
            self._finish()

    def close(self) -> None:
        self.gone = True
        if self.transport is not None:
            self.transport.abort()

    def _finish(self) -> None:
        self.answer = None
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    async def exchange(self, answer: Answer, request: bytes) -> None:
        assert self.transport is not None
        self.answer, self.done = answer, self.loop.create_future()
        self.transport.write(request)
        try:
            await self.done
        finally:
            self.answer = None
            self.used = self.loop.time()
            if not (answer.response.ended and answer.response.keep):
                self.close()


class Client:
    """Asks `target`; as many requests at once as are asked for. Use it inside one running event loop."""

    def __init__(self, target: Target, ignore_end: bool = False) -> None:
        self.target, self.ignore_end = target, ignore_end
        self._loop = asyncio.get_running_loop()
        self._tls = target.tls
        self._idle: list[_Connection] = []

    async def ask(self, prompt: Prompt, sample: Sample) -> None:
        """Send one request and fill `sample`, failures included: this raises nothing but CancelledError."""
        request = self.target.request(prompt, self.ignore_end, sample.number)
        try:
            async with asyncio.timeout(self.target.timeout):
                await self._ask(request, sample)
        except TimeoutError:
            self._failed(sample, "timeout", f"no end within {self.target.timeout:g} s")
        except OSError as error:
            self._failed(sample, "connect", str(error))

    async def _ask(self, request: bytes, sample: Sample) -> None:
        connection = self._kept()
        if connection is None:
            sample.sent = self._loop.time()              # making a connection is part of what the user waits for
            _, connection = await self._loop.create_connection(lambda: _Connection(self._loop), self.target.host, self.target.port, ssl=self._tls)
        else:
            sample.sent = self._loop.time()
        await connection.exchange(Answer(sample), request)
        if sample.end != sample.end:                     # it broke off
            sample.end = self._loop.time()
        if not connection.gone:
            self._idle.append(connection)

    def _failed(self, sample: Sample, kind: str, detail: str) -> None:
        if not sample.error:
            sample.error, sample.detail = kind, detail
        sample.end = self._loop.time()

    def _kept(self) -> _Connection | None:
        """A connection that is open and was used a moment ago."""
        oldest = self._loop.time() - IDLE
        while self._idle:
            connection = self._idle.pop()
            if not connection.gone and connection.used > oldest:
                return connection
            connection.close()
        return None

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
