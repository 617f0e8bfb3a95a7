"""`octavo serve` against other servers under a chat load: tokens per second, latency, memory. All servers are started once and loaded in turn.

    python benchmarks/servers.py --model MODEL.gguf --schemes 4bit --llama-server PATH --gguf Q4_0.gguf
                                 [--openvino-python PATH --openvino-model IR_FOLDER] [--runs 5]

Every side gets `--threads` threads, the same questions (benchmarks/chat_load.py; a new seed each run, so that nothing but the system prompt is known
from the run before), and room for all users at once: sequences of up to `--context` tokens. The client is a process of its own. A run that warms each
server up is not counted. Runs go in turn over the servers, backwards every second time; a ratio is that of two neighbours in one run.

Resident memory is Rss and Pss of the server's process after the last run, from smaps_rollup: after every user has had a sequence of about 500 tokens.

How the others are set: llama-server with a slot per user, flash attention, reuse of cached prompts (its --parallel and others: --llama-option);
OpenVINO GenAI behind benchmarks/openvino_server.py with prefix caching.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report
from peers import machine_ticks

HERE = Path(__file__).resolve().parent
BARS = {"server 100 users tokens/s": 4.0, "server 100 users p95 latency": 0.3}


@dataclass
class Side:
    """One server: how it is started, and what its runs gave."""

    name: str
    command: list[str]
    setting: str
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)

    def start(self, log: Path, seconds: float = 120) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [part.replace("PORT", str(self.port)) for part in self.command]
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        end = time.monotonic() + seconds
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{self.name} did not start: see {log}\n{log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def ticks(self) -> int:
        """Processor time of the server so far, in ticks of the system's clock."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/stat").read_text()
        return sum(int(word) for word in text[text.rindex(")") :].split()[12:14])

    def load(self, users: int, requests: int, seed: int) -> dict[str, Any]:
        """What chat_load.py found, and `others`: the share of the machine that neither this server nor the client had."""
        command = [sys.executable, str(HERE / "chat_load.py"), "--port", str(self.port), "--users", str(users), "--requests", str(requests),
                   "--seed", str(seed)]
        (total, used), own = machine_ticks(), self.ticks()
        done = subprocess.run(command, capture_output=True, text=True)
        (after, used_after), own = machine_ticks(), self.ticks() - own
        if done.returncode:
            raise SystemExit(f"the load on {self.name} failed:\n{done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(done.stdout)
        client = result["client_cpu_seconds"] * os.sysconf("SC_CLK_TCK")
        return {**result, "others": max(used_after - used - own - client, 0) / max(after - total, 1)}

    def measure_memory(self) -> None:
        """Bytes of the process: Rss, and Pss, which counts pages that are shared with others in part."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
        self.memory = {"rss": sizes["Rss"], "pss": sizes["Pss"], "anonymous": sizes["Anonymous"]}

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def sides(args: argparse.Namespace) -> list[Side]:
    """Ours first."""
    threads = str(args.threads)
    serve = [sys.executable, "-m", "octavo", "serve", str(args.model), "--threads", threads, "--port", "PORT", "--served-model-name", "model",
             "--max-model-len", str(args.context), *args.octavo_option]
    ours = [Side(f"octavo {scheme}", [*serve, "--quantization", scheme], "defaults") for scheme in args.schemes]
    others = []
    for gguf in args.gguf if args.llama_server else ():
        slots = args.parallel or args.users
        options = ["-t", threads, "-tb", threads, "-c", str(slots * args.context), "-np", str(slots), "-fa", "on", "--cache-reuse", "32",
                   "--threads-http", str(args.users + 8), *args.llama_option]
        name = f"llama-server {gguf.stem.rpartition('-')[2].upper()}"
        others.append(Side(name, [str(args.llama_server), "-m", str(gguf), "--port", "PORT", "--no-ui", *options], " ".join(options)))
    for folder in args.openvino_model if args.openvino_python else ():
        options = ["--threads", threads, "--parallel", str(args.users + 28)]
        others.append(Side(f"OpenVINO GenAI {folder.name.rpartition('-')[2]}", [
            str(args.openvino_python), str(HERE / "openvino_server.py"), "--model", str(folder), "--port", "PORT", *options], "prefix caching"))
    return ours + others


def compare(ours: Side, peer: Side, scheme: str, model: str, users: int) -> list[dict[str, Any]]:
    """The rows of one pair of servers: rates and latencies over the runs, memory after the last."""
    rows = []
    for what, key, unit, better in ((f"server {users} users tokens/s", "tokens_per_s", "tokens/s", "higher"),
                                    (f"server {users} users p95 latency", "latency_p95", "s", "lower"),
                                    (f"server {users} users p95 first token", "first_p95", "s", "lower")):
        mine, theirs = [run[key] for run in ours.runs], [run[key] for run in peer.runs]
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        rows.append({"what": what, "ours": statistics.median(mine), "peer": statistics.median(theirs), "ratio": statistics.median(ratios),
                     "ratio_min": min(ratios), "ratio_max": max(ratios), "unit": unit, "better": better, "pairs": len(ratios),
                     "ours_all": mine, "peer_all": theirs, "others": max(run["others"] for run in ours.runs + peer.runs)})
    a, b = ours.memory["rss"] / 1e6, peer.memory["rss"] / 1e6
    rows.append({"what": f"resident memory after {users} users", "ours": a, "peer": b, "ratio": a / b, "ratio_min": a / b, "ratio_max": a / b, "unit": "MB",
                 "better": "lower", "pairs": 1, "ours_pss": ours.memory["pss"] / 1e6, "peer_pss": peer.memory["pss"] / 1e6})
    for row in rows:
        row |= {"model": model, "scheme": scheme, "peer_name": peer.name, "peer_setting": peer.setting}
        if (bar := BARS.get(row["what"])) is not None:
            row |= {"bar": bar, "aim": None}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="what Octavo serves; default: the demo model")
    parser.add_argument("--name", default="SmolLM2-135M", help="the model's name in the rows")
    parser.add_argument("--schemes", nargs="+", default=["4bit"])
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--gguf", type=Path, nargs="*", default=[], help="llama-server's files, one for each scheme, named ...-q4_0.gguf")
    parser.add_argument("--openvino-python", type=Path)
    parser.add_argument("--openvino-model", type=Path, nargs="*", default=[], help="folders of the same model, one for each scheme, named ...-int4sym")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--requests", type=int, default=2, help="of each user in a run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new round begins after so long")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=768, help="tokens that a user's sequence may have")
    parser.add_argument("--parallel", type=int, help="slots of llama-server; default: one for each user")
    parser.add_argument("--llama-option", nargs="*", default=[])
    parser.add_argument("--octavo-option", nargs="*", default=[])
    parser.add_argument("--only", nargs="*", help="sides whose name begins with one of these")
    parser.add_argument("--print-only", action="store_true", help="write neither JSON nor docs")
    args = parser.parse_args()
    args.model = args.model or next(iter(sorted((report.ROOT / ".models").rglob("*.gguf"))), None)
    if args.model is None:
        raise SystemExit("the demo model is missing: run `make serve` once, or name one with --model")
    chosen = [s for s in sides(args) if not args.only or s.name.startswith(tuple(args.only))]
    logs = Path(tempfile.mkdtemp(prefix="octavo-servers-"))
    print(f"logs in {logs}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    try:
        for number, side in enumerate(chosen):
            side.start(logs / f"{number}.log")
            side.load(args.users, 1, seed=-1)             # every slot of a server that has slots knows the system prompt now
        end = time.monotonic() + args.seconds
        for run in range(args.runs):
            if run and time.monotonic() > end:
                break
            for side in chosen if run % 2 == 0 else chosen[::-1]:
                side.runs.append(got := side.load(args.users, args.requests, seed=run))
                print(f"run {run}  {side.name:24} {got['tokens_per_s']:7.1f} tokens/s  latency p50 {got['latency_p50']:6.2f} p95 {got['latency_p95']:6.2f} s  "
                      f"first p50 {got['first_p50']:5.2f} p95 {got['first_p95']:5.2f} s  cached {got['cached_tokens'] / got['prompt_tokens']:.0%}  "
                      f"client {got['client_cpu_seconds'] / got['seconds']:.1%} of a core  others {got['others']:.0%}  "
                      f"not as asked {got['not_as_asked']}", flush=True)
        for side in chosen:
            side.measure_memory()
            print(f"memory {side.name:24} " + "  ".join(f"{k} {v / 1e6:.0f} MB" for k, v in side.memory.items()), flush=True)
    finally:
        for side in chosen:
            side.stop()
    rows = []
    for index, scheme in enumerate(args.schemes):
        ours = next(s for s in chosen if s.name == f"octavo {scheme}")
        peers = [s for kind in ("llama-server", "OpenVINO") for i, s in enumerate(s for s in chosen if s.name.startswith(kind)) if i == index]
        rows += [row for peer in peers for row in compare(ours, peer, scheme, args.name, args.users)]
    for row in rows:
        row["threads"] = args.threads
        print(f"{row['scheme']:5} {row['what']:34} {row['peer_name']:24} {row['ours']:8.2f} against {row['peer']:8.2f} {row['unit']}: {row['ratio']:.2f} "
              f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f})")
    if not args.print_only:
        about = {k: v for k, v in report.circumstances().items() if k in ("date", "commit", "machine")}
        report.merge_rows([{**about, **row} for row in rows])


if __name__ == "__main__":
    main()
