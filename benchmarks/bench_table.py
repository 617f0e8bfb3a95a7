"""Precisions of a model side by side under load, and the same load sent by an independent client: docs/bench-results.md and results/bench.json.

    python benchmarks/bench_table.py --prompts QUESTIONS.jsonl --users 100 --duration 300
                                     --guidellm VENV/bin/guidellm --tokenizer FOLDER_OF_A_TOKENIZER

For each precision: a server just started, loaded by octavo.traffic; then the same again, loaded by guidellm (any version that has `guidellm run`; one worker
process, HTTP/1.1), or with --together another server that both load at the same time, half of the users each, so that a machine whose speed wanders
wanders for both. Both send the same questions, ask for answers of exactly --tokens tokens, and keep the load up after the measured time until what was
begun in it has ended. Compared are requests that began within the measured time, by each client's own stamps; guidellm's are taken from the records that
it writes, so that both are percentiles of the same kind. guidellm takes several times the processor time of octavo.traffic; where that is time the server
would have had, latencies differ by it, which --server-cores prevents. Without --guidellm only the first half is done.

--again 8bit 16bit loads these once more and puts the runs beside those that are stored: on a machine that others share, precisions that were measured many
minutes apart differ by what the machine did meanwhile, and two runs of one of them show by how much. --again-beside 4bit --duration 600 repeats the
comparison with guidellm of one precision, for as long as is said: percentiles far out need many requests.

To make a place for guidellm: `python -m venv V && V/bin/pip install guidellm`. --tokenizer is what it counts tokens with: a Hugging Face folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import report

from octavo.bench import html, rows
from octavo.bench.table import markdown
from octavo.traffic import Closed, LaunchedServer, Load, Prompts, Recording, Result, Target, after, first_model, measure, random_tokens, read_prompts, spread
from octavo.traffic.result import COLUMNS

DOCS = report.ROOT / "docs" / "bench-results.md"
FIGURES = ("p50", "p95", "p98", "p99")
AGREE = 0.05
COMING = 20.0  # seconds that guidellm gets to come up


@contextlib.contextmanager
def served(args: argparse.Namespace, precision: str) -> Iterator[LaunchedServer]:
    """A server, on cores of its own where --server-cores says so; then whatever is started inside the block has the other cores."""
    cores = os.sched_getaffinity(0)
    if args.server_cores:
        os.sched_setaffinity(0, set(args.server_cores))
    try:
        with LaunchedServer(str(args.model), ["--quantization", precision, "--receipt", "before" if args.quality else "off", *args.serve_option]) as server:
            if args.server_cores:
                os.sched_setaffinity(0, cores - set(args.server_cores))
            yield server
    finally:
        os.sched_setaffinity(0, cores)


def varied(prompts: Prompts, tokens: int) -> Prompts:
    """Answers of half to one and a half times `tokens`, each prompt its own length: users whose answers are all of one length fall into step and stay in it,
    and then a wave's phase decides about percentiles, not the server."""
    dice = random.Random(0)
    return replace(prompts, items=tuple(replace(p, max_tokens=dice.randint(max(tokens // 2, 1), tokens * 3 // 2)) for p in prompts.items))


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
    """What guidellm saw of the same load on a server of its own."""
    with served(args, precision) as server, guidellm(args, target_of(args, server), prompts, args.users, args.warmup + args.duration + tail) as ended:
        bench = ended()
    return seen(bench, bench["start_time"] + args.warmup, args.duration)


def together(args: argparse.Namespace, precision: str, prompts: Prompts) -> tuple[dict[str, Any], dict[str, Any]]:
    """Half of the users from each client, on one server at the same time: what the machine does meanwhile, it does to both."""
    half, longest = args.users // 2, args.tail
    load = Load(Closed(half), duration=args.duration, warmup=args.warmup + COMING)
    window: list[float] = []

    def note(recording: Recording) -> None:
        window[:] = [recording.began + time.time() - time.monotonic()]
        say(recording)

    with served(args, precision) as server:
        target = target_of(args, server)
        with guidellm(args, target, after(prompts, len(prompts) // 2), half, COMING + args.warmup + args.duration + longest) as ended:
            result = measure(target, prompts, load, label=precision, server=server, on_progress=note)
            bench = ended()
    if bench["start_time"] + args.warmup / 2 > window[0]:
        raise SystemExit("guidellm began too late to be compared: give a longer --warmup")
    return plain(result), seen(bench, window[0], args.duration)


@contextlib.contextmanager
def guidellm(args: argparse.Namespace, target: Target, prompts: Prompts, users: int, seconds: float) -> Iterator[Callable[[], dict[str, Any]]]:
    """guidellm at work; the function waits for its end and gives its benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        data, out, told = Path(folder) / "prompts.jsonl", Path(folder) / "out.json", Path(folder) / "told"
        with data.open("w") as file:
            for number in range(max(len(prompts), args.lines)):  # it stops at the end of its file
                file.write(json.dumps({"prompt": prompts[number].text, "output_tokens_count": prompts[number].max_tokens}) + "\n")
        path = "/v1/chat/completions" if args.endpoint == "chat" else "/v1/completions"
        command = [str(args.guidellm), "run", "--backend", f"kind=openai_http,target={target.url},model={target.model},request_format={path},http2=false",
                   "--profile", f"kind=concurrent,streams={users},rampup_duration={args.warmup / 2}",
                   "--constraint", f"kind=max_duration,seconds={seconds:.0f}", "--data", f"kind=json_file,path={data}",
                   "--tokenizer", f"kind=hf_auto,model={args.tokenizer}", "--output", f"kind=json,path={out}", "--disable-console"]
        with told.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "GUIDELLM__MAX_WORKER_PROCESSES": "1", "HF_HUB_OFFLINE": "1"})

        def ended() -> dict[str, Any]:
            if process.wait() or not out.exists():
                raise SystemExit(f"guidellm failed:\n{told.read_text(errors='replace')[-2000:]}")
            content = json.loads(out.read_text())
            return {**content["benchmarks"][0], "version": content.get("metadata", {}).get("guidellm_version", "")}

        try:
            yield ended
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def seen(bench: dict[str, Any], begun: float, duration: float) -> dict[str, Any]:
    """The spreads of one benchmark of guidellm's JSON, in seconds, of the requests that began from `begun` on (seconds since 1970) for `duration`; tokens a
    second are those of all requests that ended in that time, whenever they began: its records say no more."""
    done = bench["requests"]["successful"] or []
    chosen = [r for r in done if begun <= r["request_start_time"] < begun + duration]
    ended = [r for r in done if begun <= r["request_end_time"] <= begun + duration]
    lost = [r for kind in ("errored", "incomplete") for r in bench["requests"][kind] or [] if begun <= (r["request_start_time"] or 0) < begun + duration]
    return {
        "version": bench["version"], "requests": len(chosen), "not_ended": len(lost), "tokens_per_s": sum(r["output_tokens"] for r in ended) / duration,
        "latency": spread(np.array([r["request_latency"] for r in chosen])).to_json(),
        "ttft": spread(np.array([r["time_to_first_token_ms"] for r in chosen], float) / 1e3).to_json(),
    }


def agreement(result: dict[str, Any], other: dict[str, Any]) -> list[list[str]]:
    """Rows: figure, ours, guidellm's, theirs over ours."""
    found = []
    for name, mine, its in [(f"{what} {p}", result["summary"][what][p], other[what][p]) for what in ("latency", "ttft") for p in FIGURES]:
        found.append([name, f"{mine:.3f} s", f"{its:.3f} s", f"{its / mine:.3f}" + ("" if abs(its / mine - 1) <= AGREE else " (!)")])
    rate, its = result["summary"]["tokens_per_s"], other["tokens_per_s"]
    return [*found, ["tokens/s", f"{rate:.1f}", f"{its:.1f}", f"{its / rate:.3f}"]]


def document(stored: dict[str, Any]) -> str:
    """docs/bench-results.md from what is stored."""
    about = stored["about"]
    lines = [
        "# Precisions under load", "",
        f"{stored['model']}: {about['users']} users, {about['duration']:g} s measured after {about['warmup']:g} s of warm-up, prompts {about['prompts']}, "
        f"answers of {about['tokens'] // 2} to {about['tokens'] * 3 // 2} tokens. {about['machine']}, commit {about['commit']}, {about['date']}. "
        f"{about['cores']} What the columns mean: [bench.md](bench.md). Again: `python benchmarks/bench_table.py` with the options its docstring names.",
        "", stored["table"],
        "The rows were measured one after another, minutes apart. Where others share the machine it may have changed by more than the rows differ: "
        "two runs of one precision (`--again`) show by how much, and `octavo bench MODEL --runs 3` measures in turns.",
    ]
    if stored["agreement"]:
        version = next(iter(stored["guidellm"].values()))["version"]
        lines += ["", f"## The same load from guidellm {version}".rstrip(), "",
                  ("Half of the users from each client, on one server at the same time. " if stored["together"] else "Each on a server just started. ")
                  + "Requests that began within the measured time; (!): more than 5% apart.", ""]
        for precision, found in stored["agreement"].items():
            lines += [f"### {precision}", "", "| | octavo bench | guidellm | ratio |", "|---|---:|---:|---:|",
                      *("| " + " | ".join(row) + " |" for row in found), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="default: the demo model")
    parser.add_argument("--quantizations", nargs="+", default=["16bit", "8bit", "4bit", "nf4"])
    parser.add_argument("--again", nargs="+", default=[], help="only these, beside the stored runs; takes the load from what is stored")
    parser.add_argument("--again-beside", nargs="+", default=[], help="only the comparison with guidellm of these, both at once, beside what is stored")
    parser.add_argument("--prompts", type=Path, help="a .jsonl file of questions; default: random words, --prompt-tokens of them")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer on average; from half to one and a half times so many")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--duration", type=float, default=300.0)
    parser.add_argument("--warmup", type=float, default=30.0)
    parser.add_argument("--endpoint", choices=("chat", "completions"), default="chat")
    parser.add_argument("--serve-option", action="append", default=[])
    parser.add_argument("--server-cores", type=int, nargs="*", default=[], help="the server's alone; clients get the others, so that none takes from it")
    parser.add_argument("--guidellm", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--together", action="store_true", help="compare the clients on one server at the same time, half of the users from each")
    parser.add_argument("--tail", type=float, default=60.0, help="seconds that guidellm goes on after the measured time: more than the longest latency")
    parser.add_argument("--lines", type=int, default=20_000, help="prompts that guidellm is given")
    parser.add_argument("--no-quality", dest="quality", action="store_false", help="do not find out what quantizing lost")
    parser.add_argument("--html", type=Path, help="write the page of the first half too")
    parser.add_argument("--print-only", action="store_true", help="write neither JSON nor docs")
    args = parser.parse_args()
    args.model = args.model or next(iter(sorted((report.ROOT / ".models").rglob("*.gguf"))), None)
    if args.model is None:
        raise SystemExit("the demo model is missing: run `make serve` once, or name one with --model")
    if args.guidellm is not None and args.tokenizer is None:
        parser.error("--guidellm needs --tokenizer")
    if args.again_beside and args.guidellm is None:
        parser.error("--again-beside needs --guidellm")
    if args.again or args.again_beside:
        return again(args)
    prompts = read_prompts(args.prompts, args.tokens, seed=0, ignore_end=True) if args.prompts is not None else None
    results: list[Result] = []
    others, agreed = {}, {}
    for precision in args.quantizations:
        if prompts is None:
            with served(args, precision) as server:
                prompts = random_tokens(target_of(args, server), args.prompt_tokens, args.tokens, 5000)
        if not results:
            prompts = varied(prompts, args.tokens)
        began = time.monotonic()
        results.append(result := ours(args, precision, prompts))
        s = result.summary
        print(f"{precision:6} octavo    p50 {s.latency.p50:.3f} s  p95 {s.latency.p95:.3f} s  p99 {s.latency.p99:.3f} s  {s.tokens_per_s:.1f} tokens/s  "
              f"{s.failed} of {s.requests} failed  client {s.client_share:.1%} of a core  ({time.monotonic() - began:.0f} s)", flush=True)
        if args.guidellm is not None:
            if args.together:
                mine, other = together(args, precision, prompts)
            else:
                mine, other = plain(result), theirs(args, precision, prompts, args.tail)
            others[precision], agreed[precision] = other, agreement(mine, other)
            print(f"{precision:6} guidellm  p50 {other['latency']['p50']:.3f} s  p95 {other['latency']['p95']:.3f} s  p99 {other['latency']['p99']:.3f} s  "
                  f"{other['requests']} requests, {other['not_ended']} not ended", flush=True)
    table = markdown(rows(results))
    cores = f"The server has {len(args.server_cores)} of the cores, the client the others." if args.server_cores else "Client and server share the cores."
    about = report.circumstances(cores=cores, users=args.users,
                                  duration=args.duration, warmup=args.warmup, prompts=results[0].prompts["name"], tokens=args.tokens)
    stored = {"about": about, "model": results[0].target["model"], "table": table, "results": {r.label: plain(r) for r in results}, "together": args.together,
              "guidellm": others, "agreement": agreed}
    text = document(stored)
    print("\n" + text)
    if not args.print_only:
        report.save("bench", stored)
        DOCS.write_text(text)
    if args.html is not None:
        args.html.write_text(html(results))
    return 0


def again(args: argparse.Namespace) -> int:
    """More runs of some precisions, into the stored table."""
    stored = report.stored("bench")
    if stored is None or args.prompts is None:
        raise SystemExit("--again adds to results/bench.json and needs the --prompts that it was made with")
    about = stored["about"]
    prompts = varied(read_prompts(args.prompts, about["tokens"], seed=0, ignore_end=True), about["tokens"])
    args.users, args.warmup = about["users"], about["warmup"]
    for precision in args.again_beside:
        mine, other = together(args, precision, prompts)
        label = next(name for number in range(2, 100) if (name := f"{precision}, run {number}, {args.duration:g} s") not in stored["agreement"])
        stored["guidellm"][label], stored["agreement"][label] = other, (found := agreement(mine, other))
        print(f"{label}, {mine['summary']['requests']} and {other['requests']} requests\n" + "\n".join("  ".join(row) for row in found), flush=True)
        report.save("bench", stored)
    args.duration = about["duration"]
    for precision in args.again:
        result = ours(args, precision, prompts)
        if result.prompts["sha256"] != next(iter(stored["results"].values()))["prompts"]["sha256"]:
            raise SystemExit("these are other prompts than those of the stored runs")
        label = next(name for number in range(2, 100) if (name := f"{precision}, run {number}") not in stored["results"])
        stored["results"][label] = {**plain(result), "label": label}
        s = result.summary
        print(f"{label}: p50 {s.latency.p50:.3f} s  p95 {s.latency.p95:.3f} s  p99 {s.latency.p99:.3f} s  {s.tokens_per_s:.1f} tokens/s", flush=True)
    stored["table"] = markdown(rows([read(one) for one in stored["results"].values()]))
    report.save("bench", stored)
    DOCS.write_text(document(stored))
    return 0


def read(found: dict[str, Any]) -> Result:
    """A stored result, which has no single requests."""
    return Result.from_json({**found, "requests": {name: [] for name in COLUMNS}})


def plain(result: Result) -> dict[str, Any]:
    """What is stored of a result: all but its single requests."""
    return {k: v for k, v in result.to_json().items() if k != "requests"}


if __name__ == "__main__":
    sys.exit(main())
