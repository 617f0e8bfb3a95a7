"""Is `octavo advise` right? Its choice against everything measured at length, on six settings; its break-even batches against long runs of each batch.

    python benchmarks/advise_check.py MODEL [--against ORIGINAL] [--text FILE] [--rounds 2] [--requests 1.0] [--quick]

For each setting `octavo advise --json` runs as a user would run it. Then every candidate serves the setting's load in a process of its own, through the
engine's thread and with real concurrent users, `--rounds` times, the candidates in turns (every other round backwards): each user sends so many requests
one after the other. From these follow p95, time per token and tokens a second; memory is what the process holds at the end; the loss is measured on
another, longer text than the receipt's. The choice holds if it keeps every limit by these figures and is the best of those that do, or within 5% of it.

Break-even: the prediction of the short runs against the first batch from which on steps of long runs gain less than 5%, up to 64 sequences.

Writes benchmarks/results/advise.json and docs/advise-results.md (--quick: neither, and figures that mean nothing).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from octavo.advise import CANDIDATES, BreakEven, Candidate, Goal, Limits, Load, Step, Wanted, break_even, effective, measure
from octavo.machine import detect

ROOT = Path(__file__).resolve().parent.parent
WITHIN = 1.05
PAIRS = (("4bit", "8bit"), ("8bit", "16bit"), ("4bit", "16bit"), ("W8A16", "16bit"), ("W4A16", "16bit"))
BATCHES = (1, 2, 4, 8, 16, 32, 64)
ONE, FOUR, SIXTEEN = Load(1, 128, 64), Load(4, 192, 32), Load(16, 128, 64)
REQUESTS = {ONE: 20, FOUR: 5, SIXTEEN: 3}  # of each user in a round


@dataclass(frozen=True)
class Setting:
    load: Load
    goal: Goal | None
    limits: Limits
    options: str

    @property
    def command(self) -> str:
        load = self.load
        return f"{self.options} --users {load.users} --prompt-tokens {load.prompt} --output-tokens {load.answer}"


SETTINGS = (
    Setting(ONE, "latency", Limits(), "--goal latency"),
    Setting(FOUR, "memory", Limits(max_kl=0.5), "--goal memory --max-kl 0.5"),
    Setting(SIXTEEN, "cost", Limits(), "--goal cost"),
    Setting(ONE, "edge", Limits(), "--goal edge"),
    Setting(FOUR, None, Limits(p95=4.0, memory=300e6, max_kl=0.02), "--p95 4s --memory 300MB --max-kl 0.02"),
    Setting(SIXTEEN, "latency", Limits(max_kl=0.5), "--goal latency --max-kl 0.5"),
)


@dataclass(frozen=True)
class Figures:
    """What a candidate gave a load: seconds, tokens a second, bytes, nats per token."""

    p95: float
    per_token: float
    tokens_per_s: float
    memory: float
    kl: float
    requests: int

    def of(self, goal: Goal) -> float:
        """What the goal wants small."""
        return {"latency": self.p95, "memory": self.memory, "edge": self.memory, "cost": 1 / self.tokens_per_s, "quality": self.kl}[goal]

    def keeps(self, limits: Limits) -> bool:
        return all(limit is None or value <= limit for value, limit in
                   ((self.p95, limits.p95), (self.per_token, limits.per_token), (self.memory, limits.memory), (self.kl, limits.max_kl)))

    def shown(self, goal: Goal) -> str:
        return {"latency": f"p95 {self.p95:.3g} s", "memory": f"{self.memory / 1e6:.0f} MB", "edge": f"{self.memory / 1e6:.0f} MB",
                "cost": f"{self.tokens_per_s:.4g} tokens/s", "quality": f"KL {self.kl:.4f}"}[goal]


# -- in a process of its own -----------------------------------------------------------------------------------------------------------


def serve(model: str, name: str, users: int, prompt: int, answer: int, requests: int) -> dict[str, Any]:
    """A closed loop: every user sends `requests` requests of random tokens, the next one when the last is answered."""
    import numpy as np

    from octavo.cache import PAGE
    from octavo.engine import Engine, EngineOptions, Request, Sampling
    from octavo.loading import load
    from octavo.loading._memory import resident

    loaded = load(model, quantization=name)
    pages = users * (-(-(prompt + answer) // PAGE) + 1)
    latencies: list[float] = []

    def ask(engine: Engine, seed: int, tokens: int, new: int) -> float:
        text = np.random.default_rng(seed).integers(0, loaded.vocab_size, tokens).tolist()
        began = time.perf_counter()
        got = sum(len(delta.tokens) for delta in engine.submit(Request(tuple(text), Sampling(temperature=0.0, max_tokens=new, ignore_eos=True))))
        assert got == new, f"{got} of {new} tokens"
        return time.perf_counter() - began

    with Engine(loaded, EngineOptions(max_batch=users, max_queue=users, kv_pages=pages, prefix_cache=False)) as engine:
        def user(number: int, count: int, tokens: int, new: int, into: list[float]) -> None:
            into.extend(ask(engine, 1000 * number + i, tokens, new) for i in range(count))

        def everyone(count: int, tokens: int, new: int, into: list[float]) -> float:
            people = [threading.Thread(target=user, args=(number, count, tokens, new, into)) for number in range(users)]
            began = time.perf_counter()
            for one in people:
                one.start()
            for one in people:
                one.join()
            return time.perf_counter() - began

        everyone(1, 16, 4, [])
        seconds = everyone(requests, prompt, answer, latencies)
        memory = resident()
    assert len(latencies) == users * requests, "a request failed"
    return {"latencies": latencies, "seconds": seconds, "memory": memory}


def sweep(model: str, name: str, batches: list[int], steps: int) -> list[float]:
    """Median seconds of a step of so many sequences."""
    from octavo.loading import load
    from octavo.workloads import decode

    loaded = load(model, quantization=name)
    return [statistics.median(step.seconds for step in decode(loaded, batch, 32, steps + 3)[3:]) for batch in batches]


def losses(model: str, against: str | None, text: str, windows: int) -> dict[str, float]:
    """KL of every candidate against the original, on `windows` windows of 512 tokens of a text."""
    from octavo.loading import load
    from octavo.quality import compare_all, read_text, windows_of

    original = load(against or model)
    models = [load(model, quantization=name) for name in CANDIDATES]
    cuts = windows_of(original, read_text(text).documents, context=min(512, original.max_model_len), windows=windows)
    return {name: one.kl.value for name, one in zip(CANDIDATES, compare_all(original, models, cuts), strict=True)}


def alone(what: str, **options: Any) -> Any:
    """The result of serve, sweep or losses in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--work", json.dumps([what, options])], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# -- the check -------------------------------------------------------------------------------------------------------------------------


def advice(model: str, against: str | None, setting: Setting, quick: bool) -> dict[str, Any]:
    """What `octavo advise --json` says."""
    command = [sys.executable, "-m", "octavo", "advise", model, "--json", *setting.command.split()]
    command += ["--against", against] if against else []
    done = subprocess.run([*command, *(["--rounds", "1"] if quick else [])], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"octavo advise {setting.command} failed")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(model: str, kls: dict[str, float], rounds: int, share: float) -> dict[Load, dict[str, Figures]]:
    runs: dict[tuple[Load, str], list[dict[str, Any]]] = {}
    for turn in range(rounds):
        for load, requests in REQUESTS.items():
            for name in CANDIDATES if turn % 2 == 0 else reversed(CANDIDATES):
                note(f"round {turn + 1} of {rounds}, {load.users} users, {name}")
                runs.setdefault((load, name), []).append(alone("serve", model=model, name=name, users=load.users, prompt=load.prompt, answer=load.answer,
                                                               requests=max(1, round(share * requests))))
    found: dict[Load, dict[str, Figures]] = {}
    for (load, name), done in runs.items():
        latencies = sorted(second for one in done for second in one["latencies"])
        p95 = latencies[math.ceil(0.95 * len(latencies)) - 1]
        rate = len(latencies) * load.answer / sum(one["seconds"] for one in done)
        found.setdefault(load, {})[name] = Figures(p95, statistics.fmean(latencies) / load.answer, rate, max(one["memory"] for one in done), kls[name],
                                                   len(latencies))
    return found


def judged(setting: Setting, told: dict[str, Any], figures: dict[str, Figures]) -> dict[str, Any]:
    """The choice beside the best by the long measurement. Where nothing keeps the limits, saying so is right."""
    goal, limits = effective(setting.goal, setting.limits)
    keeping = {name: one for name, one in figures.items() if one.keeps(limits)}
    best = min(keeping, key=lambda name: keeping[name].of(goal), default=None)
    choice = told["decision"]["choice"]
    ratio = figures[choice].of(goal) / keeping[best].of(goal) if choice and best and keeping[best].of(goal) > 0 else 1.0 if choice == best else math.inf
    return {"setting": setting.command, "goal": goal, "limits": asdict(limits), "choice": choice, "best": best, "ratio": ratio,
            "choice_figure": figures[choice].shown(goal) if choice else "nothing", "best_figure": figures[best].shown(goal) if best else "nothing",
            "choice_keeps_limits": choice in keeping if choice else best is None,
            "holds": best is None if choice is None else choice in keeping and ratio <= WITHIN, "reasons": told["decision"]["reasons"],
            "advised": {one["name"]: {key: one[key] for key in ("p95", "per_token", "tokens_per_s", "memory", "kl")} for one in told["decision"]["candidates"]},
            "measured": {name: asdict(one) for name, one in figures.items()}}


def break_evens(model: str, rounds: int, batches: tuple[int, ...], steps: int) -> list[BreakEven]:
    """Predictions from short runs; what is measured, from long ones in turns: of each batch the median over rounds."""
    names = tuple(dict.fromkeys(name for pair in PAIRS for name in pair))
    note("break-even, the short runs")
    short, _ = measure(Wanted(model, names, batches=(1, 2), swept=names, quality=False), detect())
    runs: dict[str, list[list[float]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            note(f"break-even, round {turn + 1} of {rounds}, {name}")
            runs[name].append(alone("sweep", model=model, name=name, batches=list(batches), steps=steps))
    by_name: dict[str, tuple[Candidate, Candidate]] = {}
    for one in short:
        long = tuple(Step(batch, statistics.median(run[i] for run in runs[one.name])) for i, batch in enumerate(batches))
        by_name[one.name] = one, replace(one, sweep=long)
    found = []
    for few, many in PAIRS:
        guess, real = (break_even(by_name[few][i], by_name[many][i]) for i in (0, 1))
        law = dict(zip(batches, _gains(by_name[few][0], by_name[many][0], batches), strict=True))
        found.append(replace(real, predicted=guess.predicted, gains=tuple((batch, law[batch], gain) for batch, _, gain in real.gains)))
    return found


def _gains(few: Candidate, many: Candidate, batches: tuple[int, ...]) -> list[float]:
    from octavo.advise.candidate import predicted_seconds

    return [predicted_seconds(many.sweep[0], many.prefill, b) / predicted_seconds(few.sweep[0], few.prefill, b) for b in batches]


def tables(result: dict[str, Any], evens: list[BreakEven]) -> str:
    lines = ["| setting | advise takes | measured | best | measured | ratio | holds |", "|---|---|---|---|---|---|---|"]
    lines += [f"| `{one['setting']}` | {one['choice'] or 'nothing'} | {one['choice_figure']} | {one['best'] or 'nothing'} | {one['best_figure']} | "
              f"{one['ratio']:.3f} | {'yes' if one['holds'] else 'NO'} |" for one in result["settings"]]
    lines += ["", f"{sum(one['holds'] for one in result['settings'])} of {len(result['settings'])} hold.", "",
              "| fewer bits over more | " + " | ".join(map(str, result["batches"])) + " | break-even measured | predicted | within one power of two |",
              "|---" * (len(result["batches"]) + 4) + "|"]
    for even in evens:
        def said(batch: int | None, last: int) -> str:
            return f"none up to {last}" if batch is None else "never pays" if batch == 1 else str(batch)

        gains = " | ".join(f"{real:.2f} ({guess:.2f})" for _, guess, real in even.gains)
        agree = {True: "yes", False: "NO", None: "not told"}[even.agree]
        lines.append(f"| {even.few} over {even.many} | {gains} | {said(even.measured, even.last)} | {said(even.predicted, 256)} | {agree} |")
    return "\n".join(lines)


def document(result: dict[str, Any], evens: list[BreakEven]) -> str:
    return f"""# Is the advice right?

Written by `python benchmarks/advise_check.py`: {result["model"]} on {result["machine"]}, {result["date"]},
{result["rounds"]} rounds, {result["minutes"]:.0f} minutes. For each setting, what `octavo advise` takes after its short runs, beside the best of all
{len(CANDIDATES)} candidates when each serves the load at length. It holds if it keeps every limit by the long measurement and is the best that does, or within
5% of it.

{tables(result, evens)}

Gains are times as fast, measured (predicted in brackets), by sequences that decode together; break-even is the first batch from which on fewer bits are less
than 5% faster. The prediction knows a step of one sequence and a prompt only. Where neither finds a batch, they agree as far as was measured.

## Every figure
{"".join(_load(load, one) for load, one in {s.load: one for s, one in zip(SETTINGS, result["settings"], strict=True)}.items())}
Advised: from the short runs. Measured: requests of a closed loop in a process of its own; memory is what that process held; KL on {result["text"]}.
"""


def _load(load: Load, one: dict[str, Any]) -> str:
    rows = "\n".join(_row(name, one["advised"][name], one["measured"][name]) for name in CANDIDATES)
    return f"""
{load.users} user{'s' if load.users > 1 else ''}, {load.prompt} tokens in, {load.answer} out:

| precision | p95 advised | measured | tokens/s advised | measured | memory advised | measured | KL advised | measured |
|---|---|---|---|---|---|---|---|---|
{rows}
"""


def _row(name: str, told: dict[str, Any], real: dict[str, Any]) -> str:
    def nats(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    return (f"| {name} | {told['p95']:.3g} s | {real['p95']:.3g} s | {told['tokens_per_s']:.4g} | {real['tokens_per_s']:.4g} | "
            f"{told['memory'] / 1e6:.0f} MB | {real['memory'] / 1e6:.0f} MB | {nats(told['kl'])} | {nats(real['kl'])} |")


def note(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="the demo model's .gguf file")
    parser.add_argument("--against", help="its original, if it is not what it is stored as")
    parser.add_argument("--text", default="receipt", help="a file for the loss; default: the text of receipts")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=float, default=1.0, help="times as many requests")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        what, given = json.loads(options.work)
        work: dict[str, Callable[..., Any]] = {"serve": serve, "sweep": sweep, "losses": losses}
        print(json.dumps(work[what](**given)))
        return 0
    if options.model is None:
        parser.error("name a model")
    quick, began = options.quick, time.monotonic()
    rounds, share = (1, 0.01) if quick else (options.rounds, options.requests)
    batches, steps = ((1, 2, 4), 3) if quick else (BATCHES, 24)
    told = []
    for setting in SETTINGS:
        note(f"octavo advise {setting.command}")
        told.append(advice(options.model, options.against, setting, quick))
    note("losses")
    kls = alone("losses", model=options.model, against=options.against, text=options.text, windows=1 if quick else 8)
    figures = measured(options.model, kls, rounds, share)
    evens = break_evens(options.model, rounds, batches, steps)
    machine = detect()
    result: dict[str, Any] = {
        "model": Path(options.model).name, "machine": f"{machine.cpu or machine.isa}, {machine.cores} cores, kernels {machine.isa}",
        "date": time.strftime("%Y-%m-%d"), "rounds": rounds, "minutes": (time.monotonic() - began) / 60, "text": Path(options.text).name,
        "settings": [judged(setting, one, figures[setting.load]) for setting, one in zip(SETTINGS, told, strict=True)],
        "batches": list(batches), "break_even": [one.to_json() for one in evens]}
    print(tables(result, evens))
    page = document(result, evens)
    if quick:
        return 0
    (ROOT / "benchmarks/results/advise.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs/advise-results.md").write_text(page, encoding="utf-8")
    return 0 if all(one["holds"] for one in result["settings"]) and all(one.agree is not False for one in evens) else 1


if __name__ == "__main__":
    sys.exit(main())
