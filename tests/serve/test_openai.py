"""The official client against the real server process with the real model in 8 bits."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai import OpenAI

MODEL, KEY = "smollm2", "a-key"
ROOT = Path(__file__).resolve().parents[2]
Messages = list[Any]
ASK: Messages = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "description": "The weather in a city now.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"]}}}
CLOCK: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    greeting: str

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    def gauge(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"octavo_{name} ")))

    def settle(self) -> None:
        """Wait until nothing runs."""
        end = time.monotonic() + 30
        while self.gauge("num_requests_running") or self.gauge("num_requests_waiting") or self.gauge("pages_used"):
            assert time.monotonic() < end, "requests or pages are left over"
            time.sleep(0.05)


def launch(model: Path, cache: Path, *more: str) -> Server:
    command = [sys.executable, "-m", "octavo", "serve", str(model), "--quantization", "8bit", "--port", "0", "--api-key", KEY, "--served-model-name", MODEL,
               "--cache-dir", str(cache), *more]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("try"):
            break
    greeting = "".join(lines)
    found = re.search(r"http://127\.0\.0\.1:\d+", greeting)
    assert found, f"no URL in {greeting!r}"
    return Server(process, found[0], greeting)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def server(smollm2_path: Path, cache: Path) -> Iterator[Server]:
    running = launch(smollm2_path, cache, "--max-batch", "4", "--max-queue", "8", "--max-model-len", "2048", "--max-body-bytes", "100000")
    yield running
    running.process.terminate()
    running.process.communicate(timeout=60)


@pytest.fixture
def client(server: Server) -> OpenAI:
    return server.client


def say(client: OpenAI, messages: Messages = ASK, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": messages, "max_tokens": 24, "temperature": 0, **more})


def test_it_says_what_it_serves(server: Server) -> None:
    assert "W8A8h" in server.greeting and "curl http://127.0.0.1:" in server.greeting and MODEL in server.greeting


def test_chat(client: OpenAI) -> None:
    answer = say(client)
    assert "Paris" in answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 20 and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = say(client)
    assert again.choices[0].message.content == answer.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens >= 32 and again.system_fingerprint == answer.system_fingerprint


def test_streaming(client: OpenAI) -> None:
    whole = say(client).choices[0].message.content
    chunks = list(say(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-1].usage.completion_tokens > 3 and not chunks[-1].choices and chunks[-2].choices[0].finish_reason == "stop"


def test_completions(client: OpenAI) -> None:
    one = client.completions.create(model=MODEL, prompt="One, two, three, four,", max_tokens=8, temperature=0)
    assert "five" in one.choices[0].text and one.choices[0].finish_reason == "length" and one.usage.completion_tokens == 8
    several = client.completions.create(model=MODEL, prompt=["One, two, three, four,", "a b c d"], max_tokens=8, temperature=0)
    assert several.choices[0].text == one.choices[0].text and len(several.choices) == 2
    stream = client.completions.create(model=MODEL, prompt="One, two, three, four,", max_tokens=8, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in stream) == one.choices[0].text


def test_logprobs(client: OpenAI) -> None:
    answer = say(client, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert "".join(bytes(t.bytes).decode() for t in content) == answer.choices[0].message.content
    assert all(len(t.top_logprobs) == 3 and t.top_logprobs[0].token == t.token and -20 < t.logprob <= 0 for t in content)
    scored = client.completions.create(model=MODEL, prompt="The capital of France is Paris", max_tokens=0, echo=True, logprobs=1)
    logprobs = scored.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and all(p < 0 for p in logprobs.token_logprobs[1:])
    assert logprobs.token_logprobs[-1] > -4 and scored.choices[0].text == "The capital of France is Paris"


def test_sampling(client: OpenAI) -> None:
    hot = {"temperature": 1.2, "max_tokens": 16}
    first, same, other = (say(client, seed=seed, **hot).choices[0].message.content for seed in (1, 1, 2))
    assert first == same != other
    several = say(client, n=3, seed=5, **hot)
    assert len({c.message.content for c in several.choices}) == 3 and [c.index for c in several.choices] == [0, 1, 2]
    stopped = say(client, stop=["Paris"])
    assert "Paris" not in stopped.choices[0].message.content and stopped.choices[0].finish_reason == "stop"
    assert say(client, max_tokens=1).choices[0].finish_reason == "length"
    extra = say(client, extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True}, max_tokens=40)
    assert extra.usage.completion_tokens == 40


def test_the_same_seed_in_a_crowd(client: OpenAI) -> None:
    """Same seed, same text, whatever else is in the batch."""
    alone = say(client, seed=3, temperature=1, max_tokens=12).choices[0].message.content
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(say, client, [{"role": "user", "content": f"Tell me about the number {i}."}], max_tokens=20) for i in range(3)]
        crowd = pool.submit(say, client, seed=3, temperature=1, max_tokens=12).result().choices[0].message.content
        assert all(o.result().choices for o in others)
    assert crowd == alone


def test_json_schema(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
              "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}}, "required": ["name", "age", "tags"], "additionalProperties": False}
    ask: Messages = [{"role": "user", "content": "Invent a person. Answer in JSON."}]
    for seed in range(2):
        answer = say(client, ask, response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}},
                     max_tokens=200, temperature=1, seed=seed)
        jsonschema.validate(json.loads(answer.choices[0].message.content), schema)
        assert answer.choices[0].finish_reason == "stop"
    answer = say(client, ask, response_format={"type": "json_object"}, max_tokens=60)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert answer.choices[0].message.content.lstrip().startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=["required", "named"])
def test_a_tool_that_must_be_called(client: OpenAI, choice: Any) -> None:
    ask: Messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    how = {"tools": [WEATHER, CLOCK], "tool_choice": choice, "max_tokens": 300, "parallel_tool_calls": False}
    answer = say(client, ask, **how)
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls" and call.function.name in ("get_weather", "get_time")
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        jsonschema.validate(arguments, WEATHER["function"]["parameters"])
    streamed = [c.choices[0].delta.tool_calls[0] for c in say(client, ask, stream=True, **how) if c.choices[0].delta.tool_calls]
    assert streamed[0].function.name == call.function.name and json.loads("".join(c.function.arguments for c in streamed)) == arguments
    history = [*ask, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"}]
    assert say(client, history, tools=[WEATHER, CLOCK]).choices[0].message.content


def test_a_tool_that_may_be_called(client: OpenAI) -> None:
    answer = say(client, tools=[WEATHER], tool_choice="auto", max_tokens=60)
    message = answer.choices[0].message
    assert message.content or message.tool_calls
    assert say(client, tools=[WEATHER], tool_choice="none").choices[0].message.tool_calls is None


def test_errors(client: OpenAI, server: Server) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        say(OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0))
    assert refused.value.status_code == 401 and refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as unknown:
        say(client, model="gpt-4")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        say(client, [{"role": "user", "content": "word " * 4000}])
    assert long.value.code == "context_length_exceeded" and long.value.param == "messages" and "2048" in long.value.message
    with pytest.raises(openai.APIStatusError) as large:
        say(client, [{"role": "user", "content": "x" * 200_000}])
    assert large.value.status_code == 413
    with pytest.raises(openai.BadRequestError) as field:
        say(client, temperature=9)
    assert field.value.param == "temperature"
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    broken = httpx.post(f"{server.url}/v1/chat/completions", content=b'{"model": ', headers=headers)
    assert broken.status_code == 400 and "JSON" in broken.json()["error"]["message"]


def test_a_full_queue(client: OpenAI, server: Server) -> None:
    """4 run, 8 wait, the rest is told when to come back."""
    server.settle()

    def one(number: int) -> openai.RateLimitError | None:
        try:
            say(client, [{"role": "user", "content": f"Tell a story about {number}."}], max_tokens=24, extra_body={"ignore_eos": True})
        except openai.RateLimitError as error:
            return error
        return None

    with ThreadPoolExecutor(18) as pool:
        found = list(pool.map(one, range(18)))
    refused = [e for e in found if e is not None]
    assert refused and len(refused) < 18
    assert all(int(e.response.headers["retry-after"]) >= 1 and e.code == "queue_full" for e in refused)
    server.settle()


def test_a_client_that_leaves_frees_its_pages(client: OpenAI, server: Server) -> None:
    server.settle()
    before = server.gauge("cancellations_total")
    stream = say(client, stream=True, max_tokens=1500, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert server.gauge("pages_used") > 0
    stream.close()
    server.settle()
    assert server.gauge("cancellations_total") == before + 1


def test_models_tokens_and_version(client: OpenAI, server: Server) -> None:
    [listed] = client.models.list().data
    assert listed.id == MODEL and client.models.retrieve(MODEL).id == MODEL
    headers = {"Authorization": f"Bearer {KEY}"}
    text = "Straße, 東京, naïve 🙂!"
    tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": text}, headers=headers).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": tokens["tokens"]}, headers=headers).json() == {"prompt": text}
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/version", headers=headers).json()["version"]
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'octavo_http_requests_total{route="/v1/chat/completions",status="200"}' in metrics
    assert "octavo_weight_bytes{asked=" in metrics
    assert 'octavo_model_info{' in metrics and "octavo_time_to_first_token_seconds_bucket" in metrics


def test_sigterm_finishes_what_runs(smollm2_path: Path, cache: Path) -> None:
    server = launch(smollm2_path, cache)
    answers: list[Any] = []
    user = threading.Thread(target=lambda: answers.append(say(server.client, max_tokens=60, extra_body={"ignore_eos": True})))
    user.start()
    while not server.gauge("num_requests_running"):
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    user.join(60)
    assert answers[0].usage.completion_tokens == 60
    assert server.process.wait(20) == 0
