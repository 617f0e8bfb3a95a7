"""Do two processes that decode at the same time ruin each other, and does an idle one cost nothing?

    python benchmarks/contention.py MODEL [--quantization 4bit] [--threads N] [--seconds 5] [--rounds 3] [--json]

Each round: one process alone, then two at the same time, each with a team of N threads; tokens/s of each, and the share of the single rate that
each of the two got (0.5 is a fair half). Then a loaded engine that has answered once and waits: CPU seconds in ten seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

WORKER = """
import sys, time
from octavo.engine import Engine, EngineOptions, Request, Sampling
from octavo.loading import load
model, quantization, threads, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
loaded = load(model, quantization=quantization, threads=threads or None)
with Engine(loaded, EngineOptions(max_batch=1)) as engine:
    def decode(tokens):
        return engine.submit(Request(tuple(range(5, 25)), Sampling(max_tokens=tokens, ignore_eos=True)))
    list(decode(8))
    print("ready", flush=True)
    if sys.stdin.readline().strip() == "idle":
        began = time.process_time()
        time.sleep(seconds)
        print(time.process_time() - began)
    else:
        ticket, end, count = decode(100_000 if loaded.max_model_len > 100_000 else loaded.max_model_len - 32), time.perf_counter() + seconds, 0
        for delta in ticket:
            count += len(delta.tokens)
            if time.perf_counter() > end:
                break
        ticket.cancel()
        print(count / seconds)
"""


def together(count: int, command: str, arguments: list[str]) -> list[float]:
    """What `count` workers that begin at once print."""
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
               for _ in range(count)]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n", "a worker failed"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(command + "\n")
        worker.stdin.flush()
    return [float(worker.communicate()[0]) for worker in workers]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantization", default="4bit")
    parser.add_argument("--threads", type=int, default=0, help="of each process; 0: all cores")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    arguments = [str(options.model), options.quantization, str(options.threads)]
    alone, shares = [], []
    for _ in range(options.rounds):
        alone += together(1, "decode", [*arguments, str(options.seconds)])
        shares += [rate / alone[-1] for rate in together(2, "decode", [*arguments, str(options.seconds)])]
        time.sleep(0.2)
    idle = together(1, "idle", [*arguments, "10"])[0]
    result = {"alone_tokens_per_s": statistics.median(alone), "share_median": statistics.median(shares), "share_min": min(shares), "idle_cpu_s_in_10_s": idle}
    print(json.dumps(result) if options.json else "\n".join(f"{name:22}{value:10.3f}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
