"""Start and memory: seconds from starting a process to its first token, and what a server keeps resident.

    python benchmarks/start.py --model MODEL.gguf --llama-bin FOLDER --gguf Q4_0.gguf [--openvino-python PATH --openvino-model IR_FOLDER] [--pairs 7]

First token: from just before the process is created until the first byte of its answer is read from its standard output, with everything on disk in the
page cache and Octavo's own cache filled, for the same prompt without a chat template. Octavo: `octavo generate --raw` (4bit, cached). llama.cpp: the
fastest of llama-completion and llama-simple, each without warm-up and without showing the prompt. OpenVINO GenAI: benchmarks/openvino_start.py.
Processes run in turn, backwards every second time; a ratio is that of one turn.

Memory: `octavo serve` and llama-server with one model and one context length (--context), after one answer to a prompt of about --prompt tokens, by
/proc/PID/smaps_rollup: Rss is what the row compares; Pss (shared pages in part) and Anonymous (no file behind it) are kept beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import report
from servers import Side

HERE = Path(__file__).resolve().parent
PROMPT = "The harbour of the old town was quiet in the morning, and the fishermen who had come back from the sea"
BARS = {"llama.cpp": (3.0, 1.5), "OpenVINO": (0.4, None)}


def first_byte(command: list[str], skip: int = 0) -> float:
    """Seconds from before the process is made until byte number `skip` of its output is there."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    seen, seconds = 0, 0.0
    while more := os.read(process.stdout.fileno(), 4096):
        seen += len(more)
        if seen > skip and not seconds:
            seconds = time.perf_counter() - began
    if process.wait() or not seconds:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode} after {seen} bytes")
    return seconds


def starters(args: argparse.Namespace) -> dict[str, tuple[list[str], int]]:
    """Name -> command, and bytes of its output that are not the answer. Ours first."""
    threads = str(args.threads)
    octavo = [str(args.octavo)] if args.octavo else [sys.executable, "-m", "octavo"]
    found = {"octavo": ([*octavo, "generate", str(args.model), PROMPT, "--raw", "--quantization", args.scheme, "--threads", threads, "--max-tokens", "4"], 0)}
    if args.llama_bin:
        common = ["-m", str(args.gguf), "-n", "4"]
        found["llama.cpp llama-simple"] = ([str(args.llama_bin / "llama-simple"), *common, PROMPT], len(PROMPT))
        found["llama.cpp llama-completion"] = ([str(args.llama_bin / "llama-completion"), *common, "-p", PROMPT, "-t", threads, "-no-cnv",
                                                "--no-display-prompt", "--no-warmup", "--simple-io", "-c", str(args.context), "--temp", "0"], 0)
    if args.openvino_python:
        found["OpenVINO GenAI"] = ([str(args.openvino_python), str(HERE / "openvino_start.py"), str(args.openvino_model), threads, PROMPT], 0)
    return found


def start_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    commands = starters(args)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(args.pairs + 1):
        for name in list(commands) if turn % 2 == 0 else list(commands)[::-1]:
            took = first_byte(*commands[name])
            if turn:                                       # the first turn fills caches
                seconds[name].append(took)
    for name, values in seconds.items():
        print(f"first token  {name:28} median {statistics.median(values):.3f} s  ({min(values):.3f} to {max(values):.3f})", flush=True)
    rows = []
    llama = min((n for n in seconds if n.startswith("llama")), key=lambda n: statistics.median(seconds[n]), default="")
    for name in [n for n in (llama, "OpenVINO GenAI") if n in seconds]:
        ratios = [a / b for a, b in zip(seconds["octavo"], seconds[name], strict=True)]
        bar, aim = BARS[name.split()[0]]
        rows.append({"what": "first token after start", "ours": statistics.median(seconds["octavo"]), "peer": statistics.median(seconds[name]),
                     "peer_name": f"{name} int{args.scheme[0]}" if name == "OpenVINO GenAI" else name,
                     "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios), "unit": "s",
                     "better": "lower", "bar": bar, "aim": aim, "pairs": args.pairs,
                     "peer_setting": " ".join(Path(word).name for word in commands[name][0][1:3])})
    return rows


def ask(side: Side, words: int) -> None:
    dice = random.Random(1)
    prompt = " ".join(dice.choice(PROMPT.split()) for _ in range(words))
    body = {"model": "model", "messages": [{"role": "user", "content": prompt}], "max_tokens": 64, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(f"http://127.0.0.1:{side.port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        json.load(reply)


def memory_row(args: argparse.Namespace) -> dict[str, Any]:
    threads, logs = str(args.threads), Path(mkdtemp(prefix="octavo-start-"))
    octavo = [str(args.octavo)] if args.octavo else [sys.executable, "-m", "octavo"]
    ours = Side("octavo", [*octavo, "serve", str(args.model), "--quantization", args.scheme, "--threads", threads, "--port", "PORT",
                           "--served-model-name", "model", "--max-model-len", str(args.context)], "")
    setting = f"-np 1 -c {args.context} -fa on"
    peer = Side("llama-server", [str(args.llama_bin / "llama-server"), "-m", str(args.gguf), "--port", "PORT", "--no-ui", "-t", threads,
                                 *setting.split()], setting)
    for side in (ours, peer):
        try:
            side.start(logs / f"{side.name}.log")
            ask(side, args.prompt)
            side.measure_memory()
        finally:
            side.stop()
        print(f"memory  {side.name:14} " + "  ".join(f"{kind} {size / 1e6:.0f} MB" for kind, size in side.memory.items()), flush=True)
    a, b = ours.memory["rss"] / 1e6, peer.memory["rss"] / 1e6
    return {"what": "resident memory", "ours": a, "peer": b, "peer_name": f"llama-server Q{args.scheme[0]}_0",
            "ratio": a / b, "ratio_min": a / b, "ratio_max": a / b,
            "unit": "MB", "better": "lower", "bar": round((b + 150) / b, 2), "pairs": 1, "peer_setting": setting,
            "ours_pss": ours.memory["pss"] / 1e6, "peer_pss": peer.memory["pss"] / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="what Octavo runs; default: the demo model")
    parser.add_argument("--name", default="SmolLM2-135M", help="the model's name in the rows")
    parser.add_argument("--scheme", default="4bit")
    parser.add_argument("--octavo", type=Path, help="the octavo command; default: python -m octavo")
    parser.add_argument("--llama-bin", type=Path, help="folder of llama-server, llama-simple and llama-completion")
    parser.add_argument("--gguf", type=Path, help="llama.cpp's file of the same model")
    parser.add_argument("--openvino-python", type=Path)
    parser.add_argument("--openvino-model", type=Path)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--print-only", action="store_true", help="write neither JSON nor docs")
    args = parser.parse_args()
    args.model = args.model or next(iter(sorted((report.ROOT / ".models").rglob("*.gguf"))), None)
    if args.model is None:
        raise SystemExit("the demo model is missing: run `make serve` once, or name one with --model")
    rows = start_rows(args) + ([memory_row(args)] if args.llama_bin else [])
    about = {k: v for k, v in report.circumstances().items() if k in ("date", "commit", "machine")}
    rows = [{**about, "model": args.name, "scheme": args.scheme, "threads": args.threads, **row} for row in rows]
    for row in rows:
        print(f"{row['what']:24} {row['peer_name']:28} {row['ours']:8.3f} against {row['peer']:8.3f} {row['unit']}: {row['ratio']:.2f} "
              f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f}), bar {row['bar']:.2f}")
    if not args.print_only:
        report.merge_rows(rows)


if __name__ == "__main__":
    main()
