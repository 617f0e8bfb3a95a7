"""Octavo's side of peers.py: the whole engine, as `octavo serve` runs it, without HTTP.

Reads one JSON object a line, answers with one a line; see `peers.py` for the cases.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import octavo
from octavo.engine import Engine, EngineOptions
from octavo.engine.request import Delta, Request, Sampling
from octavo.loading import load


def drain(stream: Iterator[Delta], tokens: list[int]) -> None:
    for delta in stream:
        if delta.error:
            raise SystemExit(f"octavo: {delta.error}")
        tokens.extend(delta.tokens)


def run(engine: Engine, prompts: list[list[int]], new: int) -> dict[str, Any]:
    """`new` greedy tokens for each prompt, all submitted at once: seconds to the last of the first tokens and to the end."""
    sampling = Sampling(temperature=0.0, max_tokens=new, ignore_eos=True)
    made = engine.telemetry.generated_tokens
    before = made.total
    start = time.perf_counter()
    streams = [iter(engine.submit(Request(tuple(prompt), sampling))) for prompt in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    for stream, mine in zip(streams, tokens, strict=True):
        mine.extend(next(stream).tokens)
    first = time.perf_counter() - start
    at_first = made.total - before  # users whose prompts were done early are already further
    for stream, mine in zip(streams, tokens, strict=True):
        drain(stream, mine)
    total = time.perf_counter() - start
    if any(len(mine) != new for mine in tokens):
        raise SystemExit(f"octavo: expected {new} tokens for each user, got {sorted({len(mine) for mine in tokens})}")
    return {"first": first, "total": total, "after_first": new * len(prompts) - at_first, "tokens": tokens,
            "weight_bytes": engine.loaded.report.weight_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cache-dir", required=True, help="where quantized checkpoints are kept between runs")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # what loading prints must not mix with the answers
    os.dup2(2, 1)
    print(json.dumps({"version": octavo.__version__}), file=answers, flush=True)
    engines: dict[str, Engine] = {}
    for line in sys.stdin:
        task = json.loads(line)
        scheme = task["form"]
        if scheme not in engines:
            loaded = load(args.model, quantization=scheme, kv_cache=None, threads=args.threads, cache_dir=args.cache_dir)
            # Prompts are all different; without the prefix cache nothing of an earlier run can be reused either.
            engines[scheme] = Engine(loaded, EngineOptions(prefix_cache=False, kv_pages=32 * 16 + 129)).start()
        print(json.dumps(run(engines[scheme], task["prompts"], task["new"])), file=answers, flush=True)
    for engine in engines.values():
        engine.stop()


if __name__ == "__main__":
    main()
