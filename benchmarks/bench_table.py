"""Precisions of a model side by side under load, and the same load sent by an independent client: docs/bench-results.md and results/bench.json.

    python benchmarks/bench_table.py --prompts QUESTIONS.jsonl --users 100 --duration 300
                                     --guidellm VENV/bin/guidellm --tokenizer FOLDER_OF_A_TOKENIZER

For each precision: a server just started, loaded by octavo.traffic; the same again, loaded by guidellm (any version that has `guidellm run`; one worker
process, HTTP/1.1). Both send the same questions, ask for answers of exactly --tokens tokens, and keep the load up after the measured time until what was
begun in it has ended. Compared are requests that began within the measured time, by each client's own stamps; guidellm's are taken from the records that
it writes, so that both are percentiles of the same kind. Without --guidellm only the first half is done.

To make a place for guidellm: `python -m venv V && V/bin/pip install guidellm`. --tokenizer is what it counts tokens with: a Hugging Face folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import report

from octavo.bench import html, rows
from octavo.bench.table import markdown
from octavo.traffic import Closed, LaunchedServer, Load, Prompts, Recording, Result, Target, first_model, measure, random_tokens, read_prompts, spread

DOCS = report.ROOT / "docs" / "bench-results.md"
FIGURES = ("p50", "p95", "p98", "p99")
AGREE = 0.05


def served(args: argparse.Namespace, precision: str) -> LaunchedServer:
    return LaunchedServer(str(args.model), ["--quantization", precision, "--receipt", "before" if args.quality else "off", *args.serve_option])


def target_of(args: argparse.Namespace, server: LaunchedServer) -> Target:
    target = Target(server.url, "", endpoint=args.endpoint)
    return replace(target, model=first_model(target))


def say(recording: Recording) -> None:
    if sys.stderr.isatty():
        print(f"\r{len(recording.samples)} sent ", end="", file=sys.stderr, flush=True)


def ours(args: argparse.Namespace, precision: str, prompts: Prompts) -> Result:
    with served(args, precision) as server:
        load = Load(Closed(args.users), duration=args.duration, warmup=args.warmup)
        return measure(target_of(args, server), prompts, load, label=precision, server=server, on_progress=say)


def theirs(args: argparse.Namespace, precision: str, prompts: Prompts, tail: float) -> dict[str, Any]:
    """What guidellm saw of the same load: spreads in seconds of the requests that began in the measured time, and what it reports itself."""
    with served(args, precision) as server, tempfile.TemporaryDirectory() as folder:
        target, data, out = target_of(args, server), Path(folder) / "prompts.jsonl", Path(folder) / "out.json"
        with data.open("w") as file:
            for number in range(max(len(prompts), args.lines)):  # it stops at the end of its file
                file.write(json.dumps({"prompt": prompts[number].text, "output_tokens_count": prompts[number].max_tokens}) + "\n")
        path = "/v1/chat/completions" if args.endpoint == "chat" else "/v1/completions"
        command = [str(args.guidellm), "run", "--backend", f"kind=openai_http,target={server.url},model={target.model},request_format={path},http2=false",
                   "--profile", f"kind=concurrent,streams={args.users}",
                   "--constraint", f"kind=max_duration,seconds={args.warmup + args.duration + tail:.0f}",
                   "--data", f"kind=json_file,path={data}", "--tokenizer", f"kind=hf_auto,model={args.tokenizer}", "--output", f"kind=json,path={out}",
                   "--disable-console"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GUIDELLM__MAX_WORKER_PROCESSES": "1", "HF_HUB_OFFLINE": "1"})
        if done.returncode or not out.exists():
            raise SystemExit(f"guidellm failed:\n{(done.stdout + done.stderr)[-2000:]}")
        content = json.loads(out.read_text())
    bench = content["benchmarks"][0]
    return {"version": content.get("metadata", {}).get("guidellm_version", ""), **seen(bench, args.warmup, args.duration)}


def seen(bench: dict[str, Any], warmup: float, duration: float) -> dict[str, Any]:
    """The spreads of one benchmark of guidellm's JSON."""
    done, begun = bench["requests"]["successful"] or [], bench["start_time"] + warmup
    chosen = [r for r in done if begun <= r["request_start_time"] < begun + duration]
    ended = [r for r in done if begun <= r["request_end_time"] <= begun + duration]
    lost = [r for kind in ("errored", "incomplete") for r in bench["requests"][kind] or [] if begun <= (r["request_start_time"] or 0) < begun + duration]
    return {
        "requests": len(chosen), "not_ended": len(lost), "tokens_per_s": sum(r["output_tokens"] for r in ended) / duration,
        "latency": spread(np.array([r["request_latency"] for r in chosen])).to_json(),
        "ttft": spread(np.array([r["time_to_first_token_ms"] for r in chosen], float) / 1e3).to_json(),
        "reported_median": bench["metrics"]["request_latency"]["successful"]["median"],
    }


def agreement(result: dict[str, Any], other: dict[str, Any]) -> list[list[str]]:
    """Rows: figure, ours, guidellm's, theirs over ours."""
    found = []
    for name, mine, its in [(f"{what} {p}", result["summary"][what][p], other[what][p]) for what in ("latency", "ttft") for p in FIGURES]:
        found.append([name, f"{mine:.3f} s", f"{its:.3f} s", f"{its / mine:.3f}" + ("" if abs(its / mine - 1) <= AGREE else " (!)")])
    rate, its = result["tokens_per_s_ended"], other["tokens_per_s"]
    return [*found, ["tokens/s of requests that ended", f"{rate:.1f}", f"{its:.1f}", f"{its / rate:.3f}"]]


def document(stored: dict[str, Any]) -> str:
    """docs/bench-results.md from what is stored."""
    about = stored["about"]
    lines = [
        "# Precisions under load", "",
        f"{stored['model']}: {about['users']} users, {about['duration']:g} s measured after {about['warmup']:g} s of warm-up, prompts {about['prompts']}, "
        f"answers of {about['tokens']} tokens. {about['machine']}, commit {about['commit']}, {about['date']}. Client and server share the machine. What the "
        "columns mean: [bench.md](bench.md). Again: `python benchmarks/bench_table.py` with the options its docstring names.", "", stored["table"],
    ]
    if stored["agreement"]:
        version = next(iter(stored["guidellm"].values()))["version"]
        lines += ["", f"## The same load from guidellm {version}".rstrip(), "",
                  "Each on a server just started. Requests that began within the measured time; (!): more than 5% apart.", ""]
        for precision, found in stored["agreement"].items():
            lines += [f"### {precision}", "", "| | octavo bench | guidellm | ratio |", "|---|---:|---:|---:|",
                      *("| " + " | ".join(row) + " |" for row in found), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="default: the demo model")
    parser.add_argument("--quantizations", nargs="+", default=["16bit", "8bit", "4bit", "nf4"])
    parser.add_argument("--prompts", type=Path, help="a .jsonl file of questions; default: random words, --prompt-tokens of them")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--duration", type=float, default=300.0)
    parser.add_argument("--warmup", type=float, default=30.0)
    parser.add_argument("--endpoint", choices=("chat", "completions"), default="chat")
    parser.add_argument("--serve-option", action="append", default=[])
    parser.add_argument("--guidellm", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--lines", type=int, default=20_000, help="prompts that guidellm is given")
    parser.add_argument("--no-quality", dest="quality", action="store_false", help="do not find out what quantizing lost")
    parser.add_argument("--html", type=Path, help="write the page of the first half too")
    parser.add_argument("--print-only", action="store_true", help="write neither JSON nor docs")
    args = parser.parse_args()
    args.model = args.model or next(iter(sorted((report.ROOT / ".models").rglob("*.gguf"))), None)
    if args.model is None:
        raise SystemExit("the demo model is missing: run `make model`, or name one with --model")
    if args.guidellm is not None and args.tokenizer is None:
        parser.error("--guidellm needs --tokenizer")
    prompts = read_prompts(args.prompts, args.tokens, seed=0, ignore_end=True) if args.prompts is not None else None
    results, others = [], {}
    for precision in args.quantizations:
        if prompts is None:
            with served(args, precision) as server:
                prompts = random_tokens(target_of(args, server), args.prompt_tokens, args.tokens, 5000)
        began = time.monotonic()
        results.append(result := ours(args, precision, prompts))
        s = result.summary
        print(f"{precision:6} octavo    p50 {s.latency.p50:.3f} s  p95 {s.latency.p95:.3f} s  p99 {s.latency.p99:.3f} s  {s.tokens_per_s:.1f} tokens/s  "
              f"{s.failed} of {s.requests} failed  client {s.client_share:.1%} of a core  ({time.monotonic() - began:.0f} s)", flush=True)
        if args.guidellm is not None:
            others[precision] = other = theirs(args, precision, prompts, tail=max(2 * s.latency.max, 5.0))
            print(f"{precision:6} guidellm  p50 {other['latency']['p50']:.3f} s  p95 {other['latency']['p95']:.3f} s  p99 {other['latency']['p99']:.3f} s  "
                  f"{other['requests']} requests, {other['not_ended']} not ended", flush=True)
    plain = {r.label: {**{k: v for k, v in r.to_json().items() if k != "requests"}, "tokens_per_s_ended": ended_rate(r)} for r in results}
    table = markdown(rows(results))
    agreed = {name: agreement(plain[name], other) for name, other in others.items()}
    about = report.circumstances(users=args.users, duration=args.duration, warmup=args.warmup, prompts=results[0].prompts["name"], tokens=args.tokens)
    stored = {"about": about, "model": results[0].target["model"], "table": table, "results": plain, "guidellm": others, "agreement": agreed}
    text = document(stored)
    print("\n" + text)
    if not args.print_only:
        report.save("bench", stored)
        DOCS.write_text(text)
    if args.html is not None:
        args.html.write_text(html(results))
    return 0


def ended_rate(result: Result) -> float:
    """Tokens of the requests that ended in the measured time, a second: what guidellm's records allow to compare."""
    series = result.series()
    inside = (series.end >= 0) & (series.end <= series.seconds)
    return float(series.tokens[inside].sum() / series.seconds)


if __name__ == "__main__":
    sys.exit(main())
