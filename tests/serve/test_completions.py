"""Completions in process: prompts of every kind, echo, log probabilities."""

from __future__ import annotations

from typing import Any

import httpx

from .conftest import Running, Serving
from .test_chat import events


async def complete(server: Running, prompt: Any, **more: Any) -> httpx.Response:
    return await server.client.post("/v1/completions", json={"model": "parrot", "prompt": prompt, **more})


async def test_text_and_tokens_are_the_same_prompt(serving: Serving) -> None:
    async with serving() as server:
        tokens = server.engine.loaded.text.encode("«abc»")
        for prompt in ("«abc»", tokens):
            answer = (await complete(server, prompt)).json()
            assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
            assert answer["choices"] == [{"index": 0, "text": "abc", "logprobs": None, "finish_reason": "stop"}]
            assert answer["usage"]["prompt_tokens"] == 7 and answer["usage"]["completion_tokens"] == 4


async def test_several_prompts(serving: Serving) -> None:
    async with serving() as server:
        tokens = [server.engine.loaded.text.encode(p) for p in ("«a»", "«bb»")]
        for prompts in (["«a»", "«bb»"], tokens):
            answer = (await complete(server, prompts, n=2)).json()
            assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "a"), (1, "a"), (2, "bb"), (3, "bb")]
            assert answer["usage"]["prompt_tokens"] == 11
        chunks = events(await complete(server, ["«a»", "«bb»"], stream=True, stream_options={"include_usage": True}))
        texts = ["".join(c["choices"][0]["text"] for c in chunks if c["choices"] and c["choices"][0]["index"] == i) for i in range(2)]
        assert texts == ["a", "bb"] and chunks[-1]["usage"]["completion_tokens"] == 5


async def test_default_length_is_openais(serving: Serving) -> None:
    async with serving() as server:
        choice = (await complete(server, "no end")).json()["choices"][0]
        assert choice["finish_reason"] == "length" and choice["text"] == "a" * 16


async def test_echo_scores_the_prompt(serving: Serving) -> None:
    """What evaluation harnesses ask for: echo, log probabilities, and no new token."""
    async with serving() as server:
        choice = (await complete(server, "«é»", echo=True, logprobs=2, max_tokens=0)).json()["choices"][0]
        assert choice["text"] == "«é»" and choice["finish_reason"] == "length"
        scores = choice["logprobs"]
        assert scores["tokens"] == ["bytes:\\xc2", "bytes:\\xab", "bytes:\\xc3", "bytes:\\xa9", "bytes:\\xc2", "bytes:\\xbb"]
        assert scores["token_logprobs"][0] is None and all(p < 0 for p in scores["token_logprobs"][1:])
        assert scores["top_logprobs"][0] is None and len(scores["top_logprobs"][1]) == 2
        longer = (await complete(server, "«xy»", echo=True, logprobs=1)).json()["choices"][0]
        assert longer["text"] == "«xy»xy" and longer["logprobs"]["tokens"][-2:] == ["x", "y"]
        assert longer["logprobs"]["text_offset"] == [0, 0, 1, 2, 3, 3, 4, 5]
        streamed = events(await complete(server, "«xy»", echo=True, logprobs=1, stream=True))
        assert "".join(c["choices"][0]["text"] for c in streamed) == "«xy»xy"
        tokens = [t for c in streamed for t in c["choices"][0]["logprobs"]["tokens"]]
        offsets = [o for c in streamed for o in c["choices"][0]["logprobs"]["text_offset"]]
        assert tokens == longer["logprobs"]["tokens"] and offsets == longer["logprobs"]["text_offset"]


async def test_fields_of_our_own(serving: Serving) -> None:
    async with serving() as server:
        forever = (await complete(server, "«abc»", ignore_eos=True, max_tokens=6)).json()["choices"][0]
        assert forever["finish_reason"] == "length" and forever["text"].startswith("abc")
        with_stop = (await complete(server, "«abc»", stop="b", include_stop_str_in_output=True, temperature=0)).json()["choices"][0]
        assert with_stop["text"] == "ab"
        several = (await complete(server, "x", top_k=1, min_p=0.5, repetition_penalty=1.0, min_tokens=3, max_tokens=4)).json()["choices"][0]
        assert several["text"] == "aaaa"


async def test_an_empty_prompt_starts_a_text(serving: Serving) -> None:
    async with serving() as server:
        assert (await complete(server, "", max_tokens=2)).json()["choices"][0]["text"] == "aa"
