"""A few users for a long time against a running server: does its memory stay flat, and are all pages given back?

    python benchmarks/soak.py --users 8 --minutes 30

Every user asks, reads the stream, thinks for a moment and asks again; now and then one leaves in the middle. Resident memory (psutil, the process
behind the port, or --pid) and /metrics are sampled every --every seconds. Memory grows at first by design: pages of the key-value cache become
resident when they are first used, up to those that the prefix cache keeps. So the slopes are least-squares lines through the second half and the
last quarter of the samples, and the pages that are held or kept are shown beside the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
from clients import connect, first_model

WORDS = ("river", "stone", "winter", "garden", "letter", "engine", "forest", "music", "harbour", "mirror", "window", "candle", "silver", "cotton")


class Soak:
    def __init__(self, http: httpx.AsyncClient, model: str, minutes: float, tokens: int) -> None:
        self.http, self.model, self.tokens = http, model, tokens
        self.end = time.monotonic() + minutes * 60
        self.requests = self.errors = self.left_early = 0
        self.messages: set[str] = set()

    async def user(self, number: int) -> None:
        dice = random.Random(number)
        while time.monotonic() < self.end:
            prompt = " ".join(dice.choices(WORDS, k=dice.randint(5, 300)))
            body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": dice.randint(8, 2 * self.tokens),
                    "stream": True, "seed": dice.randrange(1 << 30)}
            leave_after = dice.randint(1, 20) if dice.random() < 0.1 else None
            self.requests += 1
            try:
                await self.ask(body, leave_after)
            except (httpx.HTTPError, ValueError) as error:
                self.errors += 1
                self.messages.add(f"{type(error).__name__}: {error}"[:200])
            await asyncio.sleep(dice.random() * 0.2)

    async def ask(self, body: dict[str, Any], leave_after: int | None) -> None:
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise ValueError(f"{response.status_code}: {(await response.aread()).decode()[:150]}")
            chunks = 0
            async for line in response.aiter_lines():
                chunks += line.startswith("data: ")
                if '"error":' in line[:10]:
                    raise ValueError(line[:150])
                if leave_after is not None and chunks > leave_after:
                    self.left_early += 1
                    return


async def gauges(http: httpx.AsyncClient) -> dict[str, float]:
    """The unlabelled values of /metrics."""
    found = {}
    for line in (await http.get("/metrics")).text.splitlines():
        name, _, value = line.partition(" ")
        if not line.startswith("#") and "{" not in name:
            found[name] = float(value)
    return found


def process_behind(url: str, pid: int | None) -> psutil.Process:
    if pid is not None:
        return psutil.Process(pid)
    port = urlsplit(url).port
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return psutil.Process(connection.pid)
    raise SystemExit(f"no process listens on port {port}; give --pid")


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    process = process_behind(options.url, options.pid)
    async with connect(options.url, options.api_key, options.users + 4) as http:
        soak = Soak(http, await first_model(http), options.minutes, options.tokens)
        users = [asyncio.create_task(soak.user(i)) for i in range(options.users)]
        began, samples = time.monotonic(), []
        while not all(u.done() for u in users):
            state = await gauges(http)
            used, kept = state.get("octavo_pages_used", -1), state.get("octavo_pages_cached", -1)
            samples.append((time.monotonic() - began, process.memory_info().rss / 1e6, used + kept, process.num_fds()))
            print(f"{samples[-1][0]:7.0f} s  {samples[-1][1]:9.1f} MB  pages {used:.0f} used, {kept:.0f} kept  files {samples[-1][3]}  "
                  f"requests {soak.requests}  errors {soak.errors}", flush=True)
            await asyncio.wait(users, timeout=options.every)
        await asyncio.gather(*users)
        await asyncio.sleep(2)
        state = await gauges(http)
    times, memory = np.array([s[0] for s in samples]), np.array([s[1] for s in samples])

    def slope(share: float) -> float:
        """MB per hour over the last `share` of the time."""
        late = times >= times[-1] * (1 - share)
        return round(float(np.polyfit(times[late] / 3600, memory[late], 1)[0]), 2) if late.sum() > 2 else float("nan")

    return {
        "users": options.users, "minutes": options.minutes, "requests": soak.requests, "errors": soak.errors, "left_early": soak.left_early,
        "tokens": state.get("octavo_generation_tokens_total"),
        "rss_mb_at_quarters": [round(float(np.interp(times[-1] * q, times, memory)), 1) for q in (0, 0.25, 0.5, 0.75, 1)],
        "rss_mb_max": round(float(memory.max()), 1), "mb_per_hour_second_half": slope(0.5), "mb_per_hour_last_quarter": slope(0.25),
        "pages_at_quarters": [round(float(np.interp(times[-1] * q, times, [s[2] for s in samples]))) for q in (0, 0.25, 0.5, 0.75, 1)],
        "pages_used_at_the_end": state.get("octavo_pages_used"), "files_first": samples[0][3], "files_last": samples[-1][3],
        "examples_of_errors": sorted(soak.messages)[:3],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key")
    parser.add_argument("--pid", type=int, help="the server's process; default: the one behind the port")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--tokens", type=int, default=64, help="mean length of an answer")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two samples")
    parser.add_argument("--json", type=Path, help="write the summary to this file too")
    options = parser.parse_args()
    found = asyncio.run(measure(options))
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if found["errors"] or found["pages_used_at_the_end"] else 0


if __name__ == "__main__":
    sys.exit(main())
