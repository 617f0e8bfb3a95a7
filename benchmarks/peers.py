"""Octavo against llama.cpp: same machine, same model, in turn in one run.

    python benchmarks/peers.py --peer-python PEER/bin/python [--model MODEL.gguf] [--work FOLDER] [--pairs 5] [--threads 2]

MODEL.gguf is the demo model of `make model` unless it is given.

PEER is an environment with `llama-cpp-python` built from its source for this CPU (pip install --no-binary llama-cpp-python
llama-cpp-python). llama.cpp gets Q8_0 and Q4_0 from its own quantizer, Octavo its presets 8bit and 4bit, both from MODEL.

Each case is run `--pairs` times on both sides, one after the other and the other side first every second time, after one run of each to
warm up. A ratio above 1 means that Octavo is faster; the table shows the median of the pairs' ratios and the smallest and largest of
them. Octavo runs its whole engine (scheduler, sampler, text of each token); llama.cpp runs a bare loop around llama_decode.

    decode     16 tokens of prompt, 128 new ones: tokens per second after the first
    prefill    512 tokens of prompt, 1 new one: prompt tokens per second until it is there
    16 users   16 prompts of 32 tokens at once, 64 new tokens each: new tokens per second, prompts included
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    what: str
    users: int
    prompt: int
    new: int
    length: int  # context that llama.cpp sets aside for each user

    def rate(self, answer: dict[str, Any]) -> float:
        """Tokens per second from a worker's answer."""
        if self.new == 1:
            return self.users * self.prompt / answer["first"]
        if self.users == 1:
            return (self.new - 1) / (answer["total"] - answer["first"])
        return self.users * self.new / answer["total"]


CASES = (Case("decode", 1, 16, 128, 1024), Case("prefill 512", 1, 512, 1, 1024), Case("16 users", 16, 32, 64, 256))


class Worker:
    """One side, in a process of its own that answers a line of JSON with a line of JSON."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = self._read()

    def ask(self, **task: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r} ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def compare(case: Case, scheme: str, ours: Worker, peer: Worker, pairs: int, draw: random.Random) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    agreed = 0
    for pair in range(pairs + 1):
        prompts = [[draw.randrange(200, 40_000) for _ in range(case.prompt)] for _ in range(case.users)]
        sides = [("ours", ours), ("peer", peer)]
        first: dict[str, list[int]] = {}
        for side, worker in sides if pair % 2 else sides[::-1]:
            extra = {"length": case.length, "flash": 1} if side == "peer" else {}
            answer = worker.ask(scheme=scheme, prompts=prompts, new=case.new, **extra)
            first[side] = [tokens[0] for tokens in answer["tokens"]]
            if pair:
                rates[side].append(case.rate(answer))
        agreed += sum(a == b for a, b in zip(first["ours"], first["peer"], strict=True))
    ratios = [a / b for a, b in zip(rates["ours"], rates["peer"], strict=True)]
    return {"what": case.what, "scheme": scheme, "unit": "tokens/s", "ours": statistics.median(rates["ours"]), "peer": statistics.median(rates["peer"]),
            "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios), "pairs": pairs,
            "same_first_token": agreed / ((pairs + 1) * case.users)}


def busy(seconds: float = 2.0) -> float:
    """Share of the machine's processor time that others take now, 0 to 1."""

    def ticks() -> tuple[int, int]:
        numbers = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]

    total, idle = ticks()
    time.sleep(seconds)
    after, idle_after = ticks()
    return 1 - (idle_after - idle) / max(after - total, 1)


def demo_model() -> Path:
    found = sorted((report.ROOT / ".models").rglob("*.gguf"))
    if not found:
        raise SystemExit("the demo model is missing: run `make model`, or name one with --model")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a .gguf file; default: the demo model")
    parser.add_argument("--peer-python", required=True, help="interpreter of the environment that holds llama-cpp-python")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "octavo-peers", help="folder for quantized models, kept")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--schemes", nargs="+", default=["8bit", "4bit"])
    parser.add_argument("--cases", nargs="+", default=[case.what for case in CASES], choices=[case.what for case in CASES])
    parser.add_argument("--print-only", action="store_true", help="write neither JSON nor docs")
    parser.add_argument("--busy", action="store_true", help="measure although the machine is busy")
    parser.add_argument("--bar", type=float, default=0.7, help="exit with status 1 when a ratio is below it")
    args = parser.parse_args()
    args.model = args.model or demo_model()
    if not args.busy and (share := busy()) > 0.1:
        # Threads that spin at a barrier while another process holds their core make llama.cpp up to ten times slower: that is no comparison.
        raise SystemExit(f"other programs take {share:.0%} of this machine: wait until it is quiet, or measure anyway with --busy")
    args.work.mkdir(parents=True, exist_ok=True)
    common = ["--model", str(args.model), "--threads", str(args.threads)]
    ours = Worker([sys.executable, str(HERE / "octavo_worker.py"), *common, "--cache-dir", str(args.work / "cache")])
    peer = Worker([args.peer_python, str(HERE / "llamacpp_worker.py"), *common, "--work", str(args.work)])
    print("against {name}, {info}".format(**peer.hello))
    draw = random.Random(0)
    rows = []
    for scheme in args.schemes:
        for case in (case for case in CASES if case.what in args.cases):
            row = {**compare(case, scheme, ours, peer, args.pairs, draw), "model": args.model.stem, "peer_name": peer.hello["name"]}
            rows.append(row)
            print(f"{scheme:6} {case.what:12} octavo {row['ours']:7.1f}  llama.cpp {row['peer']:7.1f} tokens/s  ratio {row['ratio']:.2f} "
                  f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f})  same first token {row['same_first_token']:.0%}", flush=True)
    ours.close()
    peer.close()
    if not args.print_only:
        report.merge_rows(rows)
    slow = [f"{row['scheme']} {row['what']}" for row in rows if row["ratio"] < args.bar]
    if slow:
        raise SystemExit(f"below the bar of {args.bar}: {', '.join(slow)}")


if __name__ == "__main__":
    main()
