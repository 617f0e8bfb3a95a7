"""The formats of the key-value cache: how fast they decode at long context, and what they lose.

    python benchmarks/kv_cache.py speed MODEL [--quantization 4bit] [--formats C16 C8 Cfp8 C4 K8V4] [--contexts 1536 8192]
        [--users 1] [--pairs 9] [--threads 2]
    python benchmarks/kv_cache.py quality MODEL --text FILE [--formats ...] [--context 8192] [--windows 1]

speed: one decoding step of `--users` sequences that have so many tokens. The cache is full of copies of a real page, so that memory is read as in
service. In a round every format runs once, in random order; the table shows the median over rounds of the ratio to the first format, and the lowest and
highest. Ratios of such pairs hold on a machine that is shared; the times themselves do not.

quality: perplexity against the first format (paired, 95% over windows of 64 tokens), KL divergence and top-1 agreement of every `--every`th token; then the
copy and needle tasks of `octavo evaluate` at the same length: the share of tokens that are right.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from pathlib import Path

import numpy as np

from octavo.cache import PAGE, KVPool, Step
from octavo.loading import LoadedModel, load
from octavo.quality import copy_task, kl_divergence, mean_interval, needle_task, windows_of
from octavo.quality.measures import negative_log_likelihood
from octavo.quality.perplexity import logits_of
from octavo.schemes import parse_cache


def decoding(users: int, length: int) -> Step:
    """One new token for each of `users` sequences, which then have `length` tokens."""
    pages = -(-length // PAGE)
    tables = np.arange(users * pages, dtype=np.int32).reshape(users, pages)
    last = np.full(users, length - 1, np.int32)
    return Step(np.full(users, 5, np.int32), last, tables[:, -1] * PAGE + last % PAGE, np.arange(users + 1, dtype=np.int32), last + 1, tables,
                np.arange(users, dtype=np.int32))


def filled(loaded: LoadedModel, pages: int, name: str) -> KVPool:
    """A cache full of copies of one page of real keys and values."""
    pool = loaded.new_pool(pages, parse_cache(name))
    rows = np.arange(PAGE, dtype=np.int32)
    loaded.forward(Step(rows + 7, rows, rows, np.array([0, PAGE], np.int32), np.array([PAGE], np.int32), np.zeros((1, 1), np.int32), rows[:1]), pool)
    for page in range(1, pages):
        pool.copy_page(0, page)
    return pool


def speed(options: argparse.Namespace) -> None:
    loaded = load(options.model, quantization=options.quantization, kv_cache=options.formats[0], threads=options.threads)
    print(f"{loaded.name} as {loaded.plan.short}, {loaded.report.backend}; {options.users} user(s), {options.pairs} rounds")
    print(f"{'context':>8} {'cache':>6} {'bytes/token':>12} {'ms/step':>8} {'speed':>7} {'lowest':>7} {'highest':>8}")
    for context in options.contexts:
        step = decoding(options.users, context)
        pools = {name: filled(loaded, int(step.tables.max()) + 1, name) for name in options.formats}
        times: dict[str, list[float]] = {name: [] for name in options.formats}
        for turn in range(options.pairs + 1):
            for name in random.sample(options.formats, len(options.formats)):
                best = math.inf
                for _ in range(options.repeat):
                    began = time.perf_counter()
                    loaded.forward(step, pools[name])
                    best = min(best, time.perf_counter() - began)
                if turn:
                    times[name].append(best)
        for name, mine in times.items():
            ratios = [base / one for base, one in zip(times[options.formats[0]], mine, strict=True)]
            size = KVPool.bytes_per_page(loaded.kv_heads, loaded.head_dims, parse_cache(name)) // PAGE
            print(f"{context:8} {name:>6} {size:12} {1e3 * statistics.median(mine):8.2f} {statistics.median(ratios):7.3f} {min(ratios):7.3f} "
                  f"{max(ratios):8.3f}", flush=True)


def quality(options: argparse.Namespace) -> None:
    loaded = load(options.model, quantization=options.quantization, kv_cache=options.formats[0], threads=options.threads, max_model_len=options.context)
    text = options.text.read_text(encoding="utf-8")
    cuts = windows_of(loaded, text, context=options.context, windows=options.windows)
    print(f"{loaded.name} as {loaded.plan.short}, {cuts.targets} tokens in {len(cuts.tokens)} windows of {options.context}")
    kept: list[np.ndarray] = []  # every eighth row of the first format's logits
    losses: dict[str, np.ndarray] = {}
    for name in options.formats:
        loaded.cache_spec = parse_cache(name)
        mine, apart, same = [], [], []
        for place, (logits, targets) in enumerate(logits_of(loaded, cuts)):
            mine.append(negative_log_likelihood(logits, targets))
            if name == options.formats[0]:
                kept.append(logits[::options.every].copy())
            apart.append(kl_divergence(kept[place], logits[::options.every]))
            same.append(kept[place].argmax(axis=1) == logits[::options.every].argmax(axis=1))
        losses[name] = np.concatenate(mine)
        worse = losses[name] - losses[options.formats[0]]
        low, high = mean_interval(worse, 64)
        line = (f"{name:>6}  perplexity {math.exp(losses[name].mean()):8.4f}, {100 * math.expm1(worse.mean()):+.3f}% ({100 * math.expm1(low):+.3f} to "
                f"{100 * math.expm1(high):+.3f}); KL {np.concatenate(apart).mean():.5f}; top-1 {np.concatenate(same).mean():.4f}")
        if options.tasks:
            length = options.task_length or min(options.context, loaded.max_model_len)
            tasks = [copy_task(loaded, text, length, trials=2), needle_task(loaded, text, length, depths=(0.1, 0.5, 0.9))]
            line += "; " + ", ".join(f"{task.kind} {task.tokens.value:.3f}" for task in tasks)
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "quality"])
    parser.add_argument("model")
    parser.add_argument("--quantization")
    parser.add_argument("--formats", nargs="+", default=["C16", "C8", "Cfp8", "K8V4", "C4"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[1536, 4096, 8192])
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--task-length", type=int)
    parser.add_argument("--tasks", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    speed(options) if options.part == "speed" else quality(options)


if __name__ == "__main__":
    main()
