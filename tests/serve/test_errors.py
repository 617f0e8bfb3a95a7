"""Everything a request can do wrong, in process: status, OpenAI's shape, the field at fault, and limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from octavo.serve.service import State

from .conftest import Parrot, Serving

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "parrot", "messages": HELLO}


def check(response: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    error = response.json()["error"]
    assert response.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert param is None or error["param"] == param, error
    assert code is None or error["code"] == code, error
    result: dict[str, Any] = error
    return result


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 3}, "temperature"), ({"temperature": "hot"}, "temperature"), ({"top_p": 0}, "top_p"), ({"n": 0}, "n"), ({"n": 129}, "n"),
    ({"max_tokens": -1}, "max_tokens"), ({"stop": ["x"] * 17}, "stop"), ({"stop": [""]}, "stop[0]"), ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"), ({"logit_bias": {"9999": 1}}, "logit_bias"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"messages": []}, "messages"), ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"), ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0]"), ({"seed": "x"}, "seed"), ({"min_p": 2}, "min_p"), ({"presence_penalty": -3}, "presence_penalty"),
    ({"response_format": {"type": "xml"}}, "response_format.type"), ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nonsense"}}}}, "response_format"),
    ({"tools": [{"type": "function", "function": {"name": "bad name"}}]}, "tools[0].function.name"), ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"), ({"modalities": ["audio"]}, "modalities"), ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]}, "messages[0].content[0]"),
    ({"model": None}, "model"), ({"max_tokens": 100_000_000_000}, "max_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[f"{p}-{i}" for i, (_, p) in enumerate(BAD)])
async def test_a_wrong_field_is_named(serving: Serving, fields: dict[str, Any], param: str) -> None:
    async with serving() as server:
        error = check(await server.client.post("/v1/chat/completions", json={**CHAT, **fields}), 400)
        assert error["type"] == "invalid_request_error" and (error["param"] or "").startswith(param), error


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b'"x"', b"\xff\xfe", b"[" * 5000, b'{"model": 1' + b"1" * 5000 + b"}", b'{"model": NaN}',
                                  rb'{"model":"parrot","messages":[{"role":"user","content":"\ud800"}]}'])
async def test_a_body_that_is_no_request(serving: Serving, body: bytes) -> None:
    async with serving() as server:
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
            check(await server.client.post(path, content=body, headers={"content-type": "application/json"}), 400)
        check(await server.client.post("/v1/chat/completions", content=json.dumps(CHAT)), 400)  # no content type


async def test_unknown_fields_are_ignored(serving: Serving) -> None:
    async with serving() as server:
        more = {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "made_up": 1, "reasoning_effort": "low", "max_tokens": 1}
        assert (await server.client.post("/v1/chat/completions", json={**CHAT, **more})).status_code == 200


async def test_unknown_models_and_routes(serving: Serving) -> None:
    async with serving(names=("parrot", "bird")) as server:
        check(await server.client.post("/v1/chat/completions", json={**CHAT, "model": "gpt"}), 404, "model", "model_not_found")
        check(await server.client.get("/v1/models/gpt"), 404, "model", "model_not_found")
        check(await server.client.get("/nowhere"), 404, code="unknown_url")
        check(await server.client.get("/v1/chat/completions"), 405, code="method_not_allowed")
        assert (await server.client.post("/v1/chat/completions", json={**CHAT, "model": "bird", "max_tokens": 1})).json()["model"] == "bird"
        listed = (await server.client.get("/v1/models")).json()
        assert [m["id"] for m in listed["data"]] == ["parrot", "bird"] and listed["object"] == "list"
        assert (await server.client.get("/v1/models/bird")).json()["id"] == "bird"


async def test_the_key(serving: Serving) -> None:
    async with serving(api_key="sécret") as server:
        bearer = {"authorization": "Bearer sécret".encode()}
        check(await server.client.get("/v1/models"), 401, code="missing_api_key")
        check(await server.client.get("/v1/models", headers={"authorization": "Bearer wrong"}), 401, code="invalid_api_key")
        check(await server.client.get("/v1/models", headers={"authorization": "Basic secret"}), 401)
        check(await server.client.post("/tokenize", json={"prompt": "x"}), 401)
        assert (await server.client.get("/v1/models", headers=bearer)).status_code == 200
        assert (await server.client.get("/health")).status_code == 200 == (await server.client.get("/metrics")).status_code
    async with serving(api_key="k", protect_metrics=True) as server:
        check(await server.client.get("/metrics"), 401)
        assert (await server.client.get("/metrics", headers={"authorization": "Bearer k"})).status_code == 200


async def test_a_large_body_is_refused_while_it_comes(serving: Serving) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 1000

    async with serving(max_body_bytes=10_000) as server:
        check(await server.client.post("/v1/completions", json={"model": "parrot", "prompt": "x" * 20_000}), 413, code="body_too_large")
        check(await server.client.post("/v1/completions", content=endless(), headers={"content-type": "application/json"}), 413, code="body_too_large")
        assert sent < 20


async def test_a_slow_body_is_given_up(serving: Serving) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async with serving(body_timeout=0.1) as server:
        check(await server.client.post("/v1/completions", content=slow(), headers={"content-type": "application/json"}), 408, code="request_timeout")


async def test_too_long(serving: Serving) -> None:
    async with serving(max_tokens=50) as server:
        check(await server.chat("x" * 3000), 400, "messages", "context_length_exceeded")
        check(await server.client.post("/v1/completions", json={"model": "parrot", "prompt": "x" * 3000}), 400, "prompt", "context_length_exceeded")
        check(await server.chat("x", max_tokens=51), 400, "max_tokens")
        check(await server.chat("x", max_completion_tokens=51), 400, "max_completion_tokens")
        assert (await server.client.post("/v1/chat/completions", json=CHAT)).json()["usage"]["completion_tokens"] == 50


async def test_a_full_queue(serving: Serving) -> None:
    async with serving(model=Parrot(pause=0.01), engine={"max_batch": 1, "max_queue": 2}) as server:
        replies = await asyncio.gather(*(server.chat("a" * 30) for _ in range(8)))
        refused = [r for r in replies if r.status_code == 429]
        assert refused and any(r.status_code == 200 for r in replies)
        for reply in refused:
            assert check(reply, 429, code="queue_full")["type"] == "rate_limit_error" and int(reply.headers["retry-after"]) >= 1


async def test_timeouts(serving: Serving) -> None:
    """Before the first token it is a status; after it, an event."""
    async with serving(model=Parrot(pause=0.05), engine={"request_timeout": 0.3}) as server:
        check(await server.client.post("/v1/chat/completions", json=CHAT), 504, code="timeout")
        text = (await server.client.post("/v1/chat/completions", json={**CHAT, "stream": True})).text
        last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["code"] == "timeout" and "[DONE]" not in text
    async with serving(model=Parrot(pause=0.1), engine={"request_timeout": 0.2, "max_batch_tokens": 32}) as server:
        check(await server.chat("a" * 300, stream=True), 504, code="timeout")


async def test_starting_and_stopping(serving: Serving) -> None:
    async with serving() as server:
        for state in (State.STARTING, State.STOPPING):
            server.service.state = state
            if state is State.STARTING:
                live, server.service._live = server.service._live, None
            assert (await server.client.get("/health")).status_code == 503
            check(await server.chat("x"), 503, code=state.value)
            server.service._live = live
        server.service.state = State.READY
        assert (await server.client.get("/health")).json() == {"status": "ready"}
        assert "version" in (await server.client.get("/version")).json()


async def test_what_the_model_does_wrong_is_ours(serving: Serving) -> None:
    class Broken(Parrot):
        def forward(self, step: Any, pool: Any) -> Any:
            raise RuntimeError("kernel fell over")

    async with serving(model=Broken()) as server:
        check(await server.chat("x"), 500, code="generation_failed")
        check(await server.chat("x", stream=True), 500, code="generation_failed")


async def test_cross_origin_is_off_unless_asked_for(serving: Serving) -> None:
    origin = {"origin": "https://app.example"}
    preflight = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with serving() as server:
        assert "access-control-allow-origin" not in (await server.client.get("/version", headers=origin)).headers
    async with serving(cors_origins=("https://app.example",), api_key="k") as server:
        allowed = await server.client.options("/v1/chat/completions", headers=preflight)
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://app.example"
        other = await server.client.options("/v1/chat/completions", headers={**preflight, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        refused = await server.client.get("/v1/models", headers=origin)
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://app.example"
