"""An event loop whose clock stands still while anything is left to do, and then jumps: seconds of load in milliseconds, the same numbers each time.

Sockets are real, and so is every byte; only time is not.
"""

from __future__ import annotations

import asyncio
import json
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            return super().select(5)             # only a socket can wake it
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = _Selector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


class Stub:
    """A server of OpenAI's streaming chat API over real sockets. `law` draws its delays: (seconds to the first token, seconds between two).

    `stall` = (from, to): in this time of the loop's clock nothing is sent. `refuse(number)` gives a status to refuse a request with, or 0.
    `pieces` cuts what is written into what the socket gets at once.
    """

    def __init__(self, law: Callable[[random.Random], tuple[float, float]], *, tokens: int = 4, stall: tuple[float, float] = (0.0, 0.0),
                 refuse: Callable[[int], int] = lambda number: 0, pieces: Callable[[bytes], list[bytes]] = lambda data: [data]) -> None:
        self.law, self.tokens, self.stall, self.refuse, self.pieces = law, tokens, stall, refuse, pieces
        self.dice, self.seen = random.Random(1), 0
        self.drawn: list[tuple[float, float]] = []
        self.port = 0

    async def __aenter__(self) -> Stub:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self.server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
                await reader.readexactly(length)
                await self.answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):  # cancelled with its loop, which is no news
            writer.close()

    async def answer(self, writer: asyncio.StreamWriter) -> None:
        number, self.seen = self.seen, self.seen + 1
        if status := self.refuse(number):
            body = json.dumps({"error": {"message": f"refused number {number}"}}).encode()
            writer.write(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
            return
        first, gap = self.law(self.dice)
        self.drawn.append((first, gap))
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        for token in range(self.tokens):
            await self.wait(gap if token else first)
            self.send(writer, (head if not token else b"") + self.chunk({"choices": [{"delta": {"content": f"w{token} "}}]}))
        usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": self.tokens}}
        self.send(writer, self.chunk(usage) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        now = asyncio.get_running_loop().time()
        if self.stall[0] <= now < self.stall[1]:
            await asyncio.sleep(self.stall[1] - now)

    def chunk(self, event: dict[str, Any]) -> bytes:
        data = b"data: " + json.dumps(event).encode() + b"\n\n"
        return b"%x\r\n%b\r\n" % (len(data), data)

    def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        for piece in self.pieces(data):
            writer.write(piece)
