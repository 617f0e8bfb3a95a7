"""Chat completions in process: shapes, streaming, sampling fields."""

from __future__ import annotations

import json
from typing import Any

import httpx

from .conftest import Parrot, Serving


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream; it must end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert response.headers["content-type"].startswith("text/event-stream") and lines[-1] == "[DONE]", response.text
    return [json.loads(line) for line in lines[:-1]]


async def test_an_answer(serving: Serving) -> None:
    async with serving() as server:
        answer = (await server.chat("Grüß dich 🙂")).json()
        assert answer["object"] == "chat.completion" and answer["model"] == "parrot" and answer["id"].startswith("chatcmpl-")
        assert answer["system_fingerprint"].startswith("fp_")
        [choice] = answer["choices"]
        assert choice == {"index": 0, "finish_reason": "stop", "logprobs": None,
                          "message": {"role": "assistant", "content": "Grüß dich 🙂", "refusal": None}}
        usage = answer["usage"]
        assert usage["completion_tokens"] == len("Grüß dich 🙂".encode()) + 1
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_a_stream_says_the_same(serving: Serving) -> None:
    async with serving() as server:
        chunks = events(await server.chat("naïve 🙂", stream=True, stream_options={"include_usage": True}))
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "naïve 🙂"
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop" and chunks[-2]["choices"][0]["delta"] == {}
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == len("naïve 🙂".encode()) + 1
        assert len({c["id"] for c in chunks}) == 1 and all(c["object"] == "chat.completion.chunk" for c in chunks)
        assert all(c["usage"] is None for c in chunks[:-1])
        without = events(await server.chat("x", stream=True))
        assert all("usage" not in c and c["choices"] for c in without)


async def test_cached_tokens_are_told(serving: Serving) -> None:
    async with serving() as server:
        said = "the same long words " * 8
        first, second = (await server.chat(said)).json(), (await server.chat(said)).json()
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 128


async def test_choices_stop_and_length(serving: Serving) -> None:
    async with serving() as server:
        answer = (await server.chat("one two three", n=3, stop=["two"])).json()
        assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in answer["choices"]] == [(i, "one ", "stop") for i in range(3)]
        for name in ("max_tokens", "max_completion_tokens"):
            cut = (await server.chat("abcdef", **{name: 3})).json()["choices"][0]
            assert (cut["message"]["content"], cut["finish_reason"]) == ("abc", "length")
        streamed = events(await server.chat("abc", n=2, stream=True))
        for index in range(2):
            mine = [c["choices"][0] for c in streamed if c["choices"][0]["index"] == index]
            assert "".join(c["delta"].get("content", "") for c in mine) == "abc" and mine[-1]["finish_reason"] == "stop"


async def test_logprobs(serving: Serving) -> None:
    async with serving() as server:
        content = (await server.chat("aé", logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
        assert [t["token"] for t in content] == ["a", "bytes:\\xc3", "bytes:\\xa9"]  # the end token is not shown
        assert bytes(b for t in content for b in t["bytes"]).decode() == "aé"
        assert all(t["logprob"] <= 0 and len(t["top_logprobs"]) == 2 and t["top_logprobs"][0]["token"] == t["token"] for t in content)
        streamed = events(await server.chat("aé", logprobs=True, stream=True))
        tokens = [t["token"] for c in streamed if c["choices"][0]["logprobs"] for t in c["choices"][0]["logprobs"]["content"]]
        assert tokens == [t["token"] for t in content]


async def test_sampling_fields_reach_the_engine(serving: Serving) -> None:
    async with serving() as server:
        b = server.engine.loaded.text.encode("b")[0]
        assert (await server.chat("aaa", logit_bias={str(b): 100}, max_tokens=2)).json()["choices"][0]["message"]["content"] == "bb"
        hot = {"temperature": 2, "max_tokens": 40}
        one, two, other = [(await server.chat("a" * 40, seed=seed, **hot)).json()["choices"][0]["message"]["content"] for seed in (7, 7, 8)]
        greedy = (await server.chat("a" * 40, max_tokens=40, temperature=0)).json()["choices"][0]["message"]["content"]
        assert one == two and greedy == "a" * 40
        assert isinstance(other, str)


async def test_json_answers(serving: Serving) -> None:
    """The parrot would say something else: the grammar has the last word."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    async with serving() as server:
        wanted = {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}, "max_tokens": 200}
        answer = json.loads((await server.chat('{"ok": true}', **wanted)).json()["choices"][0]["message"]["content"])
        assert answer == {"ok": True}
        content = (await server.chat('{"a": [1, 2]}', response_format={"type": "json_object"}, max_tokens=200)).json()["choices"][0]["message"]["content"]
        assert json.loads(content) == {"a": [1, 2]}


async def test_content_parts_and_roles(serving: Serving) -> None:
    async with serving() as server:
        parts = [{"type": "text", "text": "«"}, {"type": "text", "text": "hi»"}]
        messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
        answer = await server.client.post("/v1/chat/completions", json={"model": "parrot", "messages": messages})
        assert answer.json()["choices"][0]["message"]["content"] == "hi"
        tokens = (await server.client.post("/tokenize", json={"messages": messages})).json()
        text = (await server.client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()["prompt"]
        assert text == "system: Be brief.\nuser: «hi»\nassistant: " and tokens["count"] == len(text.encode())


async def test_a_model_without_a_template(serving: Serving) -> None:
    async with serving(model=Parrot(template=None)) as server:
        answer = await server.chat("x")
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"
