"""The load of benchmarks/servers.py against a real server process, and the rows that come of it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import chat_load
import comparison
import servers

from .test_process import Start, start  # noqa: F401


def test_every_user_gets_what_it_asks_for(start: Start) -> None:  # noqa: F811
    _, client = start()
    chat_load_system, chat_load.SYSTEM = chat_load.SYSTEM, "Be brief."      # the parrot's context is short
    try:
        found = asyncio.run(chat_load.load(str(client.base_url.host), client.base_url.port or 0, "parrot", users=5, requests=3, seed=7))
    finally:
        chat_load.SYSTEM = chat_load_system
    asked = [chat_load.question(7, user, turn)[1] for user in range(5) for turn in range(3)]
    assert found["requests"] == 15 and found["not_as_asked"] == 0 and found["tokens"] == sum(asked)
    assert 0 < found["first_p50"] <= found["first_p95"] < found["latency_p95"] <= found["seconds"]


def test_a_server_that_refuses_is_an_error(start: Start) -> None:  # noqa: F811
    _, client = start()
    with pytest.raises(ConnectionError, match="404"):
        asyncio.run(chat_load.load(str(client.base_url.host), client.base_url.port or 0, "someone else", users=1, requests=1, seed=0))


def test_questions_depend_on_seed_user_and_turn_alone() -> None:
    assert chat_load.question(1, 2, 3) == chat_load.question(1, 2, 3)
    texts = {chat_load.question(seed, user, turn)[0] for seed in range(3) for user in range(10) for turn in range(3)}
    assert len(texts) == 90


def test_rows_are_ratios_of_neighbouring_runs() -> None:
    ours, peer = (servers.Side(name, [], "a setting") for name in ("octavo 4bit", "llama-server Q4_0"))
    ours.runs = [{"tokens_per_s": rate, "latency_p95": 2.0, "first_p95": 1.0, "others": 0.01} for rate in (400.0, 500.0, 450.0)]
    peer.runs = [{"tokens_per_s": 100.0, "latency_p95": 10.0, "first_p95": 5.0, "others": 0.02} for _ in range(3)]
    ours.memory, peer.memory = {"rss": 240_000_000, "pss": 200_000_000}, {"rss": 300_000_000, "pss": 250_000_000}
    rows = servers.compare(ours, peer, "4bit", "SmolLM2-135M", 100)
    for row in rows:
        comparison.check(row)
    assert [(row["what"], row["ratio"], comparison.verdict(row)) for row in rows] == [
        ("server 100 users tokens/s", 4.5, "yes"), ("server 100 users p95 latency", 0.2, "yes"), ("server 100 users p95 first token", 0.2, ""),
        ("resident memory after 100 users", 0.8, "")]
