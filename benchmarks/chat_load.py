"""A chat load for any server that speaks OpenAI's API: users who ask one question after the other under one system prompt.

    python benchmarks/chat_load.py --port 8000 --users 100 --requests 2 --seed 1

Every request has the same system prompt (about 300 tokens), a question of its own (30 to 60 tokens) and asks for 64 to 128 new tokens, greedy,
streamed, whatever the model would rather do (ignore_eos). Questions and lengths depend on the seed, the user and the turn alone, so all servers get
the same load, and a new seed makes questions that no prefix cache knows.

The client is one event loop over raw sockets, so that it takes little of the machine that it measures: it looks at bytes, and parses JSON only at the
end of an answer, for the usage. One JSON object on standard output; latencies in seconds from sending the request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

SYSTEM = """You are the assistant of a public library with nine branches in a city by the sea. Readers write to you about opening hours, borrowing,
reservations, fines, reading groups, the children's corner, the music room and the local archive. Answer in plain and friendly English, in whole
sentences, and keep to what you know. The main branch is open from nine in the morning until eight in the evening, on Saturdays until four; the other
branches close at six and stay closed on Mondays. A book may be kept for four weeks and renewed twice, unless somebody else has reserved it. Films and
records may be kept for one week. A fine is twenty cents a day for each item and never more than six euros; children pay no fines. A reserved book waits
at the desk for eight days. Whoever has lost a card gets a new one for three euros on showing a passport. The music room has two pianos, which can be
booked for an hour at a time, at most twice a week. The archive holds newspapers from the year 1848 on, maps of the harbour, letters of sailors and
photographs of streets that are no longer there; it may be visited on Tuesdays and Thursdays after a call. Reading groups meet on the first Wednesday of
the month. If a reader asks for advice on what to read, name one or two books and say in a sentence why. If you do not know something, say so and name
the desk that will. Never ask for a password or the number of a bank account."""

OPENINGS = ("I borrowed a book about", "My daughter is looking for a picture book about", "For a talk at school I need newspapers about",
            "Last winter I read a novel about", "Our reading group would like to talk about", "My grandfather used to tell stories about")
SUBJECTS = ("lighthouses", "the old tram lines", "whales", "bakers", "the great storm", "beekeeping", "the harbour", "clocks", "sailing ships", "snow",
            "the fishing boats", "mapmakers", "the shipyard", "gardens", "lost languages", "migrating birds", "the railway bridge", "cellos")
REQUESTS = ("and I wonder how long I may keep it if somebody at the branch in the north is waiting for it.",
            "and would like to know which branch has the most about it and when I can come by after work.",
            "so please tell me what you would read next and why, and whether the archive has something from those years.",
            "but the card is lost and there is a fine on it from the summer; what do I have to bring to the desk?")

FIRST_TEXT = re.compile(rb'"content": ?"[^"]')
END = b"\r\n0\r\n\r\n"  # the chunk that ends a body, after the one before
TAIL = 4096  # bytes of an answer that are kept: its end holds the usage


def question(seed: int, user: int, turn: int) -> tuple[str, int]:
    """The text of a question and how many tokens its answer has."""
    dice = random.Random(f"{seed} {user} {turn}")
    number = dice.randrange(10_000)
    text = f"Ticket {number} of reader {user}: {dice.choice(OPENINGS)} {dice.choice(SUBJECTS)} and {dice.choice(SUBJECTS)}, {dice.choice(REQUESTS)}"
    return text, dice.randint(64, 128)


def body(model: str, text: str, tokens: int) -> bytes:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
                       "stream_options": {"include_usage": True}}).encode()


@dataclass
class Visit:
    """One request. Seconds from sending it; prompt_tokens and cached_tokens as the server says."""

    first: float
    total: float
    tokens: int
    asked: int
    prompt_tokens: int
    cached_tokens: int


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] | None = None
        self.first = 0.0
        self.head = self.last = b""
        self.tail: deque[bytes] = deque()
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.first:
            self.head += data
            if FIRST_TEXT.search(self.head):
                self.first = time.perf_counter()
            elif not self.head.startswith(b"HTTP/1.1 200"[: len(self.head)]):
                self._end(ConnectionError(self.head[:500].decode(errors="replace")))
        self.tail.append(data)
        if len(self.tail) > 1 and sum(map(len, self.tail)) - len(self.tail[0]) > TAIL:
            self.tail.popleft()
        self.last = (self.last + data)[-len(END):] if len(data) < len(END) else data
        if self.last.endswith(END):
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._end(error or ConnectionError("the server closed the connection"))

    def _end(self, error: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)

    async def ask(self, host: str, data: bytes, tokens: int) -> Visit:
        assert self.transport is not None
        if self.closed:
            self.head = b""
            raise ConnectionError("the server closed the connection")
        self.first, self.head, self.last, self.done = 0.0, b"", b"", asyncio.get_running_loop().create_future()
        self.tail.clear()
        began = time.perf_counter()
        self.transport.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                             % (host.encode(), len(data), data))
        await self.done
        total = time.perf_counter() - began
        usage = usage_of(b"".join(self.tail))
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return Visit(self.first - began, total, usage["completion_tokens"], tokens, usage["prompt_tokens"], cached)


def usage_of(tail: bytes) -> dict[str, Any]:
    """The usage of the last event that has one."""
    for line in reversed(tail.split(b"data: ")):
        if b'"completion_tokens"' in line:
            found: dict[str, Any] = json.loads(line[: line.rindex(b"}") + 1])["usage"]
            return found
    raise ConnectionError(f"the answer ended without its usage: {tail[-300:].decode(errors='replace')}")


async def user(host: str, port: int, model: str, number: int, seed: int, requests: int) -> list[Visit]:
    """One after the other over one connection. A server may close it between two answers (llama-server now and then does): then over a new one, as any
    client would."""
    visits: list[Visit] = []
    connection = await connected(host, port)
    try:
        for turn in range(requests):
            text, tokens = question(seed, number, turn)
            data = body(model, text, tokens)
            try:
                visits.append(await connection.ask(host, data, tokens))
            except ConnectionError:
                if not connection.closed or connection.head or not turn:
                    raise
                connection = await connected(host, port)
                visits.append(await connection.ask(host, data, tokens))
        return visits
    finally:
        assert connection.transport is not None
        connection.transport.close()


async def connected(host: str, port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return connection


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


async def load(host: str, port: int, model: str, users: int, requests: int, seed: int) -> dict[str, Any]:
    """All users at once, each with its requests one after the other."""
    began = time.perf_counter()
    visits = [v for each in await asyncio.gather(*(user(host, port, model, i, seed, requests) for i in range(users))) for v in each]
    seconds = time.perf_counter() - began
    tokens = sum(v.tokens for v in visits)
    short = sum(v.tokens != v.asked for v in visits)
    return {
        "users": users, "requests": len(visits), "seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds, "not_as_asked": short,
        "prompt_tokens": sum(v.prompt_tokens for v in visits), "cached_tokens": sum(v.cached_tokens for v in visits),
        **{f"{what}_p{share}": quantile([getattr(v, field) for v in visits], share / 100)
           for what, field in (("latency", "total"), ("first", "first")) for share in (50, 95)},
        "client_cpu_seconds": time.process_time(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="model")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--requests", type=int, default=2, help="of each user")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(asyncio.run(load(args.host, args.port, args.model, args.users, args.requests, args.seed))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
