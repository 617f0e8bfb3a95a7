"""Two or more builds of the native module against the first one, step by step: the way to see a change of two percent on a machine that wanders by thirty.

    python benchmarks/builds.py --model MODEL [--quantization 4bit] [--rounds 40] [--case "16 users" ...] OLD.so NEW.so [NAME=VALUE,OTHER.so ...]

Each build runs in a process of its own with the same steps over the same cache; in every round each takes one step (of one user several), in a random
order. A ratio is the first build's time over this one's in the same round; printed are the median over the rounds and, in brackets, the order statistics
around it that hold it with 95%. Builds must give the same logits to the bit, or the line says that they do not. NAME=VALUE before a build: its environment.
The same build named twice shows what is noise. A build is the _native*.so of an installation, copied before it was overwritten.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def decoding(users: int, context: int, shared: int = 0) -> tuple[int, list[np.ndarray]]:
    """Pages, and the arrays of a Step in which `users` sequences of `context` tokens take one more; they begin with `shared` pages in common, and the others
    lie in any order."""
    each = context // 32 + 1
    pages = shared + users * (each - shared)
    order = np.random.default_rng(0).permutation(np.arange(shared, pages))
    tables = np.concatenate([np.tile(np.arange(shared), (users, 1)), order.reshape(users, each - shared)], axis=1).astype(np.int32)
    at, numbers = np.full(users, context, np.int32), np.arange(users + 1, dtype=np.int32)
    return pages, [300 + numbers[:-1], at, (tables[:, context // 32] * 32 + context % 32).astype(np.int32), numbers, at + 1, tables, numbers[:-1].copy()]


def prompts(count: int, rows: int, before: int = 0) -> tuple[int, list[np.ndarray]]:
    """The same for `count` prompts of `rows` tokens behind `before` common ones, a multiple of 32."""
    shared, each = before // 32, -(-(before + rows) // 32)
    own = each - shared
    tables = np.array([[*range(shared), *range(shared + s * own, shared + (s + 1) * own)] for s in range(count)], np.int32)
    at = np.arange(before, before + rows, dtype=np.int32)
    slots = np.concatenate([table[at // 32] * 32 + at % 32 for table in tables]).astype(np.int32)
    tokens = (300 + np.arange(count * rows) % 500).astype(np.int32)
    starts = (np.arange(count + 1) * rows).astype(np.int32)
    return shared + count * own, [tokens, np.tile(at, count), slots, starts, np.full(count, before + rows, np.int32), tables, starts[1:] - 1]


# name -> steps of a turn, and what makes one
CASES: dict[str, tuple[int, Callable[[], tuple[int, list[np.ndarray]]]]] = {
    "one user": (8, lambda: decoding(1, 100)), "one user at 1500": (6, lambda: decoding(1, 1500)), "16 users": (2, lambda: decoding(16, 96)),
    "32 users": (1, lambda: decoding(32, 96)), "100 users": (1, lambda: decoding(100, 440, 11)), "prompt of 512": (1, lambda: prompts(1, 512)),
    "ten prompts of 52": (1, lambda: prompts(10, 52, 352)),
}


def work(build: str, model: str, quantization: str, threads: int) -> None:
    """One build's side: reads the name of a case a line, answers with seconds of a step and the first bytes of its logits."""
    loader = importlib.machinery.ExtensionFileLoader("octavo._native", build)
    spec = importlib.util.spec_from_loader("octavo._native", loader)
    assert spec is not None
    native = importlib.util.module_from_spec(spec)
    loader.exec_module(native)
    sys.modules["octavo._native"] = native
    import octavo
    octavo._native = native  # type: ignore[attr-defined]
    from octavo.cache import Step
    from octavo.loading import load

    loaded = load(model, quantization=quantization, threads=threads)
    held: tuple[str, Step, Any] | None = None
    print("ready", flush=True)
    for line in sys.stdin:
        name = json.loads(line)
        if held is None or held[0] != name:
            pages, arrays = CASES[name][1]()
            held = name, Step(*arrays), loaded.new_pool(pages)
            loaded.forward(held[1], held[2])
        began = time.perf_counter()
        for _ in range(CASES[name][0]):
            logits = loaded.forward(held[1], held[2])
        seconds = (time.perf_counter() - began) / CASES[name][0]
        print(json.dumps([seconds, float(np.abs(logits).sum()), logits[-1, :8].tobytes().hex()]), flush=True)


def start(build: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    *changes, path = build.split(",")
    command = [sys.executable, __file__, "--worker", "--model", args.model, "--quantization", args.quantization, "--threads", str(args.threads), path]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **dict(c.split("=", 1) for c in changes)})


def ask(worker: subprocess.Popen[str], name: str) -> tuple[float, tuple[Any, ...]]:
    assert worker.stdin and worker.stdout
    worker.stdin.write(json.dumps(name) + "\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"a build ended in the case {name!r}: see above")
    seconds, *logits = json.loads(line)
    return seconds, tuple(logits)


def spread(values: list[float]) -> str:
    """The median and the order statistics that hold it with 95%."""
    ordered, half = sorted(values), int(0.98 * len(values) ** 0.5)
    middle = len(ordered) // 2
    return f"{statistics.median(ordered):.3f} [{ordered[max(middle - half, 0)]:.3f}, {ordered[min(middle + half, len(ordered) - 1)]:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantization", default="4bit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.builds[0], args.model, args.quantization, args.threads)
    workers = [start(build, args) for build in args.builds]
    for worker in workers:
        assert worker.stdout
        if worker.stdout.readline().strip() != "ready":
            raise SystemExit("a build did not start: see above")
    for name in args.case or CASES:
        times: list[list[float]] = [[] for _ in workers]
        said: list[Any] = [None] * len(workers)
        for turn in range(args.rounds + 2):  # the first two warm up
            for i in random.sample(range(len(workers)), len(workers)):
                seconds, said[i] = ask(workers[i], name)
                if turn > 1:
                    times[i].append(seconds)
        shown = [f"{statistics.median(mine) * 1e3:.2f} ms " + spread([a / b for a, b in zip(times[0], mine, strict=True)]) for mine in times]
        print(f"{args.quantization}, {name}: " + " | ".join(shown) + ("" if len(set(said)) == 1 else " | OTHER LOGITS"), flush=True)
    for worker in workers:
        assert worker.stdin
        worker.stdin.close()


if __name__ == "__main__":
    main()
