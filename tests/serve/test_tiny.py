"""A real model of 0.26 M parameters in process: sampling through the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.loading import load

from .conftest import Running, Serving

START = "Once upon a time"


async def texts(server: Running, **more: Any) -> list[str]:
    body = {"model": "parrot", "prompt": START, "max_tokens": 24, **more}
    reply = await server.client.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    return [choice["text"] for choice in reply.json()["choices"]]


async def test_seeds_choices_and_greedy(tiny_model: Path, tmp_path: Path, serving: Serving) -> None:
    async with serving(model=load(tiny_model, quantization="8bit", cache_dir=tmp_path)) as server:
        greedy = await texts(server, temperature=0)
        assert greedy == await texts(server, temperature=0) == await texts(server, top_k=1) and "there was" in greedy[0]
        several = await texts(server, n=4, seed=11)
        assert several == await texts(server, n=4, seed=11) != await texts(server, n=4, seed=12) and len(set(several)) == 4
        assert (await texts(server, seed=11))[0] == several[0], "a choice does not depend on its company"
        free, frequent = [await texts(server, temperature=0, max_tokens=100, frequency_penalty=p) for p in (0, 2)]
        assert free != frequent
        scored = await server.client.post("/v1/completions", json={"model": "parrot", "prompt": START, "max_tokens": 0, "echo": True, "logprobs": 1})
        logprobs = scored.json()["choices"][0]["logprobs"]["token_logprobs"]
        assert logprobs[0] is None and sum(logprobs[1:]) > -20
