"""From deltas to bytes: the short way writes what the long way writes, in the same order, whoever is slow."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from typing import Any

import pytest

from octavo.engine import Delta, Finish, Request, Ticket
from octavo.engine.ticket import wake
from octavo.serve.events import DONE, MARK, EventStream, Feed, Template, event
from octavo.serve.problems import Problem
from octavo.serve.wire import KEY

from .conftest import Serving
from .test_process import Start, body, start  # noqa: F401


@pytest.mark.parametrize("text", ["", "a", '"', "\\", "\n\t\x00\x7f", "ü–語🙂", "</script>", "@", '"@"'])
def test_a_template_writes_what_json_writes(text: str) -> None:
    def chunk(content: str) -> dict[str, Any]:
        return {"model": '@ "@" é', "choices": [{"delta": {"content": content}, "logprobs": None}]}

    assert Template(chunk(MARK)).fill(text) == event(chunk(text))


class Letters:
    """Encodes a delta as its text."""

    def encode(self, place: int, delta: Delta) -> bytes:
        if delta.finish is Finish.ERROR:
            raise Problem(500, "it failed")
        return delta.text.encode()

    def end(self) -> bytes:
        return b"."


class Slow:
    """A wire that is full now and then, and the ASGI `send` over the same bytes, which takes its time."""

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.written, self.direct, self.full = dice, b"", 0, False

    def write(self, data: bytes) -> None:
        assert not self.full
        self.written += data
        self.direct += 1
        self.full = self.dice.random() < 0.3

    async def send(self, message: dict[str, Any]) -> None:
        for _ in range(self.dice.randint(0, 3)):
            await asyncio.sleep(0)
        self.written += message.get("body", b"")
        self.full = False


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("seed", range(8))
async def test_bytes_come_in_order_whether_or_not_the_wire_is_full(seed: int) -> None:
    dice = random.Random(seed)
    wire = Slow(dice)
    tickets = [Ticket(Request((1,)), str(i), lambda _: None) for i in range(2)]
    response = EventStream(Feed(Letters(), tickets), tickets)
    sending = asyncio.create_task(response({"type": "http", "http_version": "1.1", "state": {KEY: wire}}, never, wire.send))  # type: ignore[arg-type]
    sent: list[list[str]] = [[], []]
    for place in range(200):
        ticket = dice.randrange(2)
        text = f"{ticket}{place:03};"
        sent[ticket].append(text)
        tickets[ticket].put(Delta(0, text, (1,)))
        if dice.random() < 0.7:
            wake(tickets)
            for _ in range(dice.randint(0, 4)):
                await asyncio.sleep(0)
    for ticket in tickets:
        ticket.put(Delta(0, "", (), finish=Finish.STOP))
    wake(tickets)
    await asyncio.wait_for(sending, 5)
    written, end = wire.written.decode().split(";."), DONE.decode()
    assert written[1] == end and wire.direct > 5
    for ticket in range(2):
        assert [f"{part};" for part in written[0].split(";") if part.startswith(str(ticket))] == sent[ticket]


async def test_a_failure_after_the_first_bytes_is_an_event() -> None:
    ticket = Ticket(Request((1,)), "x", lambda _: None)
    feed = Feed(Letters(), [ticket])
    ticket.put(Delta(0, "a", (1,)))
    await feed.first()
    ticket.put(Delta(0, "", (), finish=Finish.ERROR, error="x"))
    assert b"it failed" in feed.take() and feed.ended and b"DONE" not in feed.take()


async def test_a_failure_before_them_is_a_status() -> None:
    ticket = Ticket(Request((1,)), "x", lambda _: None)
    ticket.put(Delta(0, "", (), finish=Finish.ERROR, error="x"))
    with pytest.raises(Problem):
        await Feed(Letters(), [ticket]).first()


def events(answer: str) -> list[Any]:
    return [json.loads(line[6:]) for line in answer.split("\n\n") if line.startswith("data: {")]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_the_real_server_sends_what_the_application_sends(start: Start, serving: Serving, path: str) -> None:  # noqa: F811
    """Over sockets, twice on one connection: the same events as in process, but for names and times."""
    say = 'He said "é–語🙂"\n\tand \\left. ' * 5
    ask: dict[str, Any] = {"model": "parrot", "stream": True, "max_tokens": 400, "stream_options": {"include_usage": True}}
    ask |= {"messages": [{"role": "user", "content": f"«{say}»"}]} if path.startswith("chat") else {"prompt": f"«{say}»\nassistant: ", "n": 2}
    _, client = start()
    answers = [client.post(f"/v1/{path}", json=ask).text for _ in range(2)]
    async with serving() as server:
        answers.append((await server.client.post(f"/v1/{path}", json=ask)).text)
    shapes = []
    for answer in answers:
        assert answer.endswith("data: [DONE]\n\n")
        for found in (chunks := events(answer)):
            del found["id"], found["created"], found["system_fingerprint"]
            if found["usage"]:
                found["usage"]["prompt_tokens_details"] = None     # the second time the prompt is cached
        order = sorted(chunks, key=lambda c: c["choices"][0]["index"] if c["choices"] else 99)
        shapes.append(order)
        texts = [c["choices"][0].get("text") or c["choices"][0].get("delta", {}).get("content") or "" for c in order if c["choices"]]
        assert "".join(texts) == say * (1 if path.startswith("chat") else 2)
    assert shapes[0] == shapes[1] == shapes[2]


def test_a_client_of_http_1_0_gets_the_plain_bytes(start: Start) -> None:  # noqa: F811
    _, client = start()
    content = json.dumps(body("hello", stream=True)).encode()
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
        answer = b""
        while more := connection.recv(4096):
            answer += more
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"200 OK" in head and b"chunked" not in head.lower()
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events(rest.decode())) == "hello" and rest.endswith(DONE)
