"""The engine on real models: the same answers however the work is cut up, and structured output from a real vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from octavo.engine import Engine, EngineOptions, Finish, Request, Sampling

from .conftest import read, tokens, words

STORIES = [
    "Once upon a time", "Lily and Tom went to the park. They saw a big", "The dog", "One day, a little girl named Sue found a red ball in the grass. She",
]


@pytest.fixture(scope="module", params=["8bit", "4bit", "16bit"])
def stories(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    from octavo.loading import load

    return load(str(tiny_model), quantization=request.param, use_cache=False)


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[Engine]:
    from octavo.loading import load

    with Engine(load(str(smollm2_path), quantization="8bit", use_cache=False), EngineOptions(kv_pages=256, max_batch=16)) as engine:
        yield engine


def answers(loaded: Any, requests: list[Request], **options: Any) -> tuple[list[list[int]], Engine]:
    with Engine(loaded, EngineOptions(**{"kv_pages": 100, **options})) as engine:
        tickets = [engine.submit(r) for r in requests]
        return [tokens(deltas) for t in tickets for _, deltas in sorted(read(t).items())], engine


def test_answers_do_not_depend_on_how_the_work_is_cut_up(stories: Any) -> None:
    """Alone, in a batch, in chunks of 32 tokens, from cached pages, with too few pages: token for token the same, and log
    probabilities bit for bit."""
    text = stories.text
    long = text.encode(" ".join(STORIES * 3))[:300]
    requests = [Request(tuple(text.encode(s)), Sampling(temperature=0.9, seed=i, max_tokens=60, top_p=0.95)) for i, s in enumerate(STORIES)]
    requests.append(Request(tuple(long), Sampling(temperature=0, max_tokens=40)))
    alone = [answers(stories, [r])[0][0] for r in requests]
    assert answers(stories, requests)[0] == alone
    assert answers(stories, requests, max_batch_tokens=32)[0] == alone
    again, engine = answers(stories, [*requests, *requests], max_batch=1)
    assert again == [*alone, *alone] and engine.telemetry.cached_tokens.total >= 128
    crowded, engine = answers(stories, requests * 2, kv_pages=14, max_batch=10)
    assert crowded == [*alone, *alone] and engine.telemetry.preemptions.total > 0


def test_log_probabilities_are_the_same_to_the_bit(stories: Any) -> None:
    prompt = tuple(stories.text.encode(STORIES[3]))
    request = Request(prompt, Sampling(temperature=0, max_tokens=50, logprobs=2))
    with Engine(stories, EngineOptions(kv_pages=100)) as engine:
        alone = [d.logprobs for d in read(engine.submit(request))[0]]
        cached = read(engine.submit(Request((*prompt, *(s[0].token for s in alone[:30])), Sampling(temperature=0, max_tokens=20, logprobs=2))))[0]
        assert cached[0].cached_tokens >= 32
        assert [d.logprobs for d in cached] == alone[30:]
        noise = [engine.submit(Request(tuple(stories.text.encode(s)), Sampling(max_tokens=80))) for s in STORIES]
        assert [d.logprobs for d in read(engine.submit(request))[0]] == alone
        for ticket in noise:
            read(ticket)


def test_scored_prompts_agree_with_generation(stories: Any) -> None:
    """What a token scored when it was drawn greedily it also scores as part of a prompt."""
    prompt = tuple(stories.text.encode(STORIES[0]))
    with Engine(stories, EngineOptions(kv_pages=100)) as engine:
        drawn = [s for d in read(engine.submit(Request(prompt, Sampling(temperature=0, max_tokens=40, logprobs=0))))[0] for s in d.logprobs]
        whole = (*prompt, *(s.token for s in drawn))
        scored = read(engine.submit(Request(whole, Sampling(max_tokens=0), echo_logprobs=True)))[0][0].prompt_logprobs
    assert scored[len(prompt) :] == tuple(drawn)


def test_a_hundred_at_once(stories: Any) -> None:
    requests = [Request(tuple(stories.text.encode(STORIES[i % 4])), Sampling(seed=i, max_tokens=30), n=1 + i % 2) for i in range(100)]
    result, engine = answers(stories, requests, max_batch=32, kv_pages=60)
    assert len(result) == 150 and all(result)
    assert engine.telemetry.pages_used.value == 0 and engine.idle


def test_chat_on_the_demo_model(smollm2: Engine) -> None:
    text = smollm2.loaded.text
    prompt = text.encode_chat(text.chat([{"role": "user", "content": "What is the capital of France? Answer with one word."}]))
    deltas = read(smollm2.submit(Request(tuple(prompt), Sampling(temperature=0, max_tokens=20))))[0]
    assert "Paris" in words(deltas) and deltas[-1].finish is Finish.STOP
    assert words(deltas) == text.decode(tokens(deltas))


def test_json_from_the_demo_model(smollm2: Engine) -> None:
    schema = {"type": "object", "additionalProperties": False, "required": ["name", "capital", "population"],
              "properties": {"name": {"type": "string", "maxLength": 30}, "capital": {"type": "string", "maxLength": 30},
                             "population": {"type": "integer", "maximum": 10**9}}}
    text = smollm2.loaded.text
    prompt = tuple(text.encode_chat(text.chat([{"role": "user", "content": "Describe France as JSON."}])))
    for seed in range(3):
        deltas = read(smollm2.submit(Request(prompt, Sampling(temperature=0.8, seed=seed, max_tokens=150, grammar={"json_schema": schema}))))[0]
        assert deltas[-1].finish is Finish.STOP, words(deltas)
        validate(json.loads(words(deltas)), schema)
