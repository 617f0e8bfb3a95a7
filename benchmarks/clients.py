"""Many streaming clients at once against a running server: errors, waiting times, and whether anyone is starved.

    python benchmarks/clients.py --clients 100 --tokens 64

Prints percentiles over clients of the time to the first token, and over all chunks of the gap between two of them. A client counts as starved
when its longest gap is above two seconds and above --starved times the median gap of all, or when it gets fewer tokens than it asked for: one that waits
while others are served, however fast or slow the machine is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

OPENINGS = ("Write a story about", "Explain to a child", "List ten facts about", "Write a letter about", "Describe the history of")
SUBJECTS = ("rivers", "a lighthouse", "the moon", "trains", "bread", "an old library", "bees", "the sea in winter", "clocks", "a market", "snow", "maps")


@dataclass
class Visit:
    """What one client saw. Times in seconds from sending its request."""

    client: int
    first: float = 0.0
    total: float = 0.0
    tokens: int = 0
    gaps: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def longest_gap(self) -> float:
        return max(self.gaps, default=0.0)


async def visit(http: httpx.AsyncClient, client: int, model: str, tokens: int) -> Visit:
    """One streamed chat completion of exactly `tokens` tokens."""
    seen = Visit(client)
    prompt = f"{OPENINGS[client % len(OPENINGS)]} {SUBJECTS[client // len(OPENINGS) % len(SUBJECTS)]}, number {client}."
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "ignore_eos": True, "seed": client,
            "stream": True, "stream_options": {"include_usage": True}}
    began = last = time.perf_counter()
    done = False
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                seen.error = f"{response.status_code}: {(await response.aread()).decode()[:200]}"
                return seen
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                now = time.perf_counter()
                if line == "data: [DONE]":
                    done = True
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    seen.error = chunk["error"]["message"]
                elif chunk.get("usage"):
                    seen.tokens = chunk["usage"]["completion_tokens"]
                elif chunk["choices"][0]["delta"].get("content"):
                    if seen.first:
                        seen.gaps.append(now - last)
                    else:
                        seen.first = now - began
                    last = now
        if not done and not seen.error:
            seen.error = "the stream ended without [DONE]"
    except httpx.HTTPError as error:
        seen.error = f"{type(error).__name__}: {error}"
    seen.total = time.perf_counter() - began
    return seen


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def summary(visits: list[Visit], tokens: int, starved: float, wall: float) -> dict[str, Any]:
    good = [v for v in visits if not v.error]
    gaps = [g for v in good for g in v.gaps]
    limit = max(2.0, starved * percentile(gaps, 0.5))

    def spread(values: list[float]) -> dict[str, float]:
        return {name: round(percentile(values, share), 4) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))}

    return {
        "clients": len(visits), "errors": len(visits) - len(good), "starved": sum(v.longest_gap > limit or v.tokens < tokens for v in good),
        "tokens": sum(v.tokens for v in good), "seconds": round(wall, 2), "tokens_per_second": round(sum(v.tokens for v in good) / wall, 1),
        "first_token_seconds": spread([v.first for v in good]), "gap_seconds": spread(gaps), "total_seconds": spread([v.total for v in good]),
        "examples_of_errors": sorted({v.error for v in visits if v.error})[:3],
    }


def connect(url: str, key: str | None, clients: int) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=clients + 8, max_keepalive_connections=clients + 8)
    return httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=httpx.Timeout(600, connect=60))


async def first_model(http: httpx.AsyncClient) -> str:
    reply = await http.get("/v1/models")
    reply.raise_for_status()
    name: str = reply.json()["data"][0]["id"]
    return name


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    async with connect(options.url, options.api_key, options.clients) as http:
        model = await first_model(http)
        began = time.perf_counter()
        visits = await asyncio.gather(*(visit(http, i, model, options.tokens) for i in range(options.clients)))
        return {"model": model, **summary(list(visits), options.tokens, options.starved, time.perf_counter() - began)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--starved", type=float, default=20.0, help="multiple of the median gap that counts as starvation")
    parser.add_argument("--json", type=Path, help="write the summary to this file too")
    options = parser.parse_args()
    found = asyncio.run(measure(options))
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if found["errors"] or found["starved"] else 0


if __name__ == "__main__":
    sys.exit(main())
