"""benchmarks/bench_table.py: what it takes from guidellm's records, and the page it writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_table

from octavo.traffic import random_words

from .test_bench import result


def record(start: float, latency: float, first: float = 0.1) -> dict[str, Any]:
    return {"request_start_time": start, "request_end_time": start + latency, "request_latency": latency, "time_to_first_token_ms": first * 1e3,
            "output_tokens": 10}


def test_only_what_began_in_the_measured_time_counts() -> None:
    done = [record(100 + i / 10, 1.0) for i in range(200)]
    bench = {"version": "1", "requests": {"successful": [record(95, 9.0), *done, record(121, 9.0)], "errored": [record(105, 1)], "incomplete": None}}
    seen = bench_table.seen(bench, 100.0, 20.0)
    assert seen["requests"] == 200 and seen["not_ended"] == 1 and seen["latency"]["max"] == 1.0 and abs(seen["ttft"]["p50"] - 0.1) < 1e-9
    assert seen["tokens_per_s"] == (191 + 1) * 10 / 20, "190 and one of those that began in it ended in it, and the one from before"


def test_the_page() -> None:
    mine = bench_table.plain(result("4bit", 100, latency=1.0))
    spreads = {name: {p: value * mine["summary"][name][p] for p in bench_table.FIGURES} for name, value in (("latency", 1.02), ("ttft", 1.2))}
    rows = bench_table.agreement(mine, {**spreads, "tokens_per_s": 95.0})
    assert rows[0] == ["latency p50", "1.000 s", "1.020 s", "1.020"] and rows[4][3] == "1.200 (!)"
    about = {"users": 1, "duration": 10.0, "warmup": 1.0, "prompts": "p", "tokens": 8, "machine": "m", "commit": "c", "date": "d", "cores": "."}
    text = bench_table.document({"about": about, "model": "x", "table": "| |\n", "agreement": {"4bit": rows}, "guidellm": {"4bit": {"version": "1"}},
                                 "together": True})
    assert "guidellm 1" in text and "at the same time" in text and "| latency p50 | 1.000 s | 1.020 s | 1.020 |" in text


def test_answers_of_different_lengths() -> None:
    lengths = [p.max_tokens for p in bench_table.varied(random_words(3, 64, 300), 64).items]
    assert min(lengths) >= 32 and max(lengths) <= 96 and len(set(lengths)) > 40 and abs(sum(lengths) / 300 - 64) < 4
