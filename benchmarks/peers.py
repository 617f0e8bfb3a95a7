"""Octavo against other engines: same machine, same weights, same prompts, in turn in one run.

    python benchmarks/peers.py --llamacpp-python A/bin/python --openvino-python B/bin/python --transformers-python C/bin/python
        [--work FOLDER] [--models ...] [--schemes ...] [--cases ...] [--peers ...] [--pairs 5] [--threads 2] [--thorough] [--lock FILE]

Each peer runs in an interpreter of its own (`make peers` builds them); one that is not named is left out. llama.cpp is llama-cpp-python
built from its source for this CPU, weights rounded by its own quantizer; OpenVINO is openvino-genai, weights rounded by nncf. What each
worker sets is said in its file. Models: `shapes.py`.

A round runs every side once, each time starting with another one; the first round warms up and does not count. Every round gives one ratio
per peer; the table shows their median, smallest and largest. A run during which other programs took more than `--others` of the
machine's processor time is thrown away and run again, on any side (threads that wait at a barrier for one that lost its core make any engine several
times slower: that is no comparison). Octavo runs its whole engine (scheduler, sampler, text of each token); the peers run bare loops.

    decode batch 1     prompt of 16 tokens: new tokens per second after the first
    prefill 512, 2048  one prompt and one new token: prompt tokens per second until it is there
    decode N users     N prompts at once: new tokens per second from the moment when the last user got its first one to the end

Rows go to benchmarks/results/peers.json after each case, in place of those of the same name: a run can be taken up again case by case.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comparison
import report
import shapes

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    what: str
    users: int
    prompt: int
    new: int
    warm: int  # tokens of the warm-up's prompt

    @property
    def length(self) -> int:
        """Context for each user, in whole blocks of 32."""
        return (self.prompt + self.new + 63) // 32 * 32

    def rate(self, answer: dict[str, Any]) -> float:
        """Tokens per second from a worker's answer."""
        if self.new == 1:
            return self.users * self.prompt / answer["first"]
        return answer["after_first"] / (answer["total"] - answer["first"])


# The large model takes ten times as long: fewer new tokens and short warm-ups, the same prompts where the prompt is what is measured.
CASES = {
    shapes.SMOLLM2.name: (Case("decode batch 1", 1, 16, 128, 16), Case("prefill 512", 1, 512, 1, 512), Case("prefill 2048", 1, 2048, 1, 2048),
                          Case("decode 16 users", 16, 32, 64, 32), Case("decode 32 users", 32, 32, 64, 32)),
    shapes.TINYLLAMA.name: (Case("decode batch 1", 1, 16, 32, 16), Case("prefill 512", 1, 512, 1, 64), Case("prefill 2048", 1, 2048, 1, 64),
                            Case("decode 16 users", 16, 16, 20, 4), Case("decode 32 users", 32, 16, 16, 4)),
}


@dataclass(frozen=True)
class Peer:
    name: str
    worker: str
    form: str
    everywhere: bool = True  # False: never the best where it was tried, so only in the two quickest cases unless --thorough


PEERS = {
    "4bit": (Peer("llama.cpp Q4_0", "llamacpp", "q4_0"), Peer("OpenVINO GenAI int4", "openvino", "int4"),
             Peer("llama.cpp Q4_K_M", "llamacpp", "q4_k_m", False), Peer("bitsandbytes nf4", "transformers", "nf4", False)),
    "8bit": (Peer("llama.cpp Q8_0", "llamacpp", "q8_0"), Peer("OpenVINO GenAI int8", "openvino", "int8"),
             Peer("torchao int8", "transformers", "int8", False)),
    "16bit": (Peer("llama.cpp F16", "llamacpp", "f16", False), Peer("transformers bf16", "transformers", "bf16", False)),
}
QUICK = ("decode batch 1", "prefill 512")


class Worker:
    """One side, in a process of its own that answers a line of JSON with a line of JSON."""

    def __init__(self, python: str, name: str, *options: str) -> None:
        command = [python, str(HERE / f"{name}_worker.py"), *options]
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
            raise ChildProcessError(f"{self.process.args!r} ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ticks(self) -> int:
        """Processor time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def machine_ticks() -> tuple[int, int]:
    """(all, busy) ticks of the machine's processors so far."""
    numbers = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(numbers), sum(numbers) - numbers[3] - numbers[4]


def busy(seconds: float = 1.0) -> float:
    """Share of the machine's processor time that is taken now, 0 to 1."""
    total, used = machine_ticks()
    time.sleep(seconds)
    after, used_after = machine_ticks()
    return (used_after - used) / max(after - total, 1)


def await_quiet(limit: float, seconds: float) -> None:
    end = time.monotonic() + seconds
    while busy(0.3) > limit and time.monotonic() < end:
        pass


@dataclass
class Run:
    """One answer of one side, and the share of the machine that other programs took meanwhile."""

    answer: dict[str, Any]
    rate: float
    others: float


def timed(worker: Worker, form: str, case: Case, prompts: list[list[int]]) -> Run:
    total, used, own = *machine_ticks(), worker.ticks()
    answer = worker.ask(form=form, prompts=prompts, new=case.new, length=case.length)
    after, used_after, own_after = *machine_ticks(), worker.ticks()
    others = max(0, used_after - used - (own_after - own)) / max(after - total, 1)
    return Run(answer, case.rate(answer), others)


def rounds(case: Case, sides: dict[str, tuple[Worker, str]], words: range, pairs: int, most_others: float, patience: float) -> list[dict[str, Run]]:
    """`pairs` rounds of all sides, by side, after one to warm up.

    A run that others disturbed more than `most_others` is run again at once, up to twice and for `patience` seconds in all; the least
    disturbed one counts. What is left of the disturbance stands in the row.
    """
    draw = random.Random(case.what)
    names = list(sides)
    done: list[dict[str, Run]] = []
    end = time.monotonic() + patience
    for turn in range(pairs + 1):
        prompts = [[draw.choice(words) for _ in range(case.prompt if turn else case.warm)] for _ in range(case.users)]
        got: dict[str, Run] = {}
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            attempts: list[Run] = []
            while not attempts or (turn and len(attempts) < 3 and attempts[-1].others > most_others and time.monotonic() < end):
                if turn and time.monotonic() < end:
                    await_quiet(most_others, 1.5)
                attempts.append(timed(*sides[name], case, prompts))
                print(f"    round {turn} {name or 'octavo':20} {attempts[-1].rate:8.1f} tokens/s, others {attempts[-1].others:.0%}", file=sys.stderr,
                      flush=True)
            got[name] = min(attempts, key=lambda run: run.others)
        if turn:
            done.append(got)
    return done


def compare(case: Case, scheme: str, shape: shapes.Shape, ours: Worker, peers: dict[Peer, Worker], args: argparse.Namespace) -> list[comparison.Row]:
    """The rows of one case: one for each peer."""
    sides = {"": (ours, scheme)} | {peer.name: (worker, peer.form) for peer, worker in peers.items()}
    done = rounds(case, sides, range(300, min(shape.vocabulary, 40_000)), args.pairs, args.others, args.patience)
    rows = []
    for peer, worker in peers.items():
        mine, theirs = ([got[side].rate for got in done] for side in ("", peer.name))
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        agreed = [a[0] == b[0] for got in done for a, b in zip(got[""].answer["tokens"], got[peer.name].answer["tokens"], strict=True)]
        bits = {side: 8 * done[0][name].answer["weight_bytes"] / shape.weights for side, name in (("bits_ours", ""), ("bits_peer", peer.name))}
        rows.append({
            "what": case.what, "model": shape.name, "scheme": scheme, "unit": "tokens/s", "ours": statistics.median(mine),
            "peer": statistics.median(theirs), "peer_name": peer.name, "ratio": statistics.median(ratios), "ratio_min": min(ratios),
            "ratio_max": max(ratios), "pairs": len(ratios), **bits, "threads": args.threads, "users": case.users, "prompt": case.prompt,
            "new": case.new, "ours_all": mine, "peer_all": theirs, "same_first_token": sum(agreed) / len(agreed),
            "others": max(got[side].others for got in done for side in ("", peer.name)),
            "peer_version": worker.hello["version"], "peer_setting": worker.hello["setting"]})
    return rows


@contextlib.contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Hold a lock file while a case runs, where several programs measure on one machine."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_scheme(shape: shapes.Shape, scheme: str, cases: list[Case], source: Path, folder: Path, args: argparse.Namespace) -> list[comparison.Row]:
    pythons = {"llamacpp": args.llamacpp_python, "openvino": args.openvino_python, "transformers": args.transformers_python}
    wanted = [peer for peer in PEERS[scheme] if pythons[peer.worker] and (not args.peers or peer.name in args.peers)]
    if not wanted:
        return []
    threads = ["--threads", str(args.threads)]
    ours = Worker(sys.executable, "octavo", "--model", str(source), "--cache-dir", str(folder / "cache"), *threads)
    open_now: dict[Peer, Worker] = {}
    rows = []
    try:
        for case in cases:
            now = [peer for peer in wanted if peer.everywhere or args.thorough or case.what in QUICK]
            for peer in list(open_now):
                if peer not in now:
                    open_now.pop(peer).close()
            with locked(args.lock):
                for peer in now:
                    if peer not in open_now and (worker := opened(pythons[peer.worker], peer, folder, threads)):
                        open_now[peer] = worker
                if not open_now:
                    continue
                start = time.monotonic()
                found = compare(case, scheme, shape, ours, open_now, args)
            rows += found
            for row in found:
                print(f"{shape.name} {scheme:5} {case.what:15} octavo {row['ours']:7.1f}  {row['peer_name']:19} {row['peer']:7.1f}  "
                      f"ratio {row['ratio']:5.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})  "
                      f"same first token {row['same_first_token']:.0%}  others {row['others']:.0%}", flush=True)
            print(f"    {time.monotonic() - start:.0f} s", flush=True)
            if not args.print_only:
                report.merge_rows(found)
    finally:
        for worker in [ours, *open_now.values()]:
            worker.close()
    return rows


def opened(python: str, peer: Peer, folder: Path, threads: list[str]) -> Worker | None:
    """The peer's worker with its model made and loaded, or None, said aloud, where it does not run here."""
    try:
        worker = Worker(python, peer.worker, "--folder", str(folder), *threads)
        worker.ask(form=peer.form, prompts=[[300, 301, 302, 303]], new=2, length=64)
    except ChildProcessError as error:
        print(f"{peer.name} does not run here: {error}", flush=True)
        return None
    return worker


def main() -> None:
    whats = list(comparison.WHATS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("llamacpp", "openvino", "transformers"):
        parser.add_argument(f"--{name}-python", default="", help=f"interpreter of the environment for {name}_worker.py; without it that peer is left out")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "octavo-peers", help="folder for models, kept")
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--schemes", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--cases", nargs="+", default=whats, choices=whats)
    parser.add_argument("--peers", nargs="+", default=[], choices=[peer.name for group in PEERS.values() for peer in group])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--others", type=float, default=0.05, help="most of the machine that other programs may take during a run")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds of a case after which disturbed runs are no longer run again")
    parser.add_argument("--thorough", action="store_true", help="every peer in every case")
    parser.add_argument("--lock", type=Path, help="a lock file to hold while a case runs")
    parser.add_argument("--print-only", action="store_true", help="write neither JSON nor docs")
    args = parser.parse_args()
    if args.lock is None and (share := busy()) > args.others:
        print(f"other programs take {share:.0%} of this machine: rounds that they disturb are run again, this may take long", flush=True)
    rows = []
    for model in args.models:
        source, folder = shapes.prepare(model, args.work)
        cases = [case for case in CASES[model] if case.what in args.cases]
        for scheme in args.schemes:
            rows += run_scheme(shapes.SHAPES[model], scheme, cases, source, folder, args)
    print("\n" + "\n".join(comparison.sections(rows)) if rows else "nothing was measured: name an interpreter for at least one peer")


if __name__ == "__main__":
    main()
