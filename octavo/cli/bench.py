"""`octavo bench MODEL` or `octavo bench --url URL`: a server under load. `octavo bench compare A.json B.json`: whether two results differ."""

from __future__ import annotations

import json
import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UsageError
from ._command import Command

if TYPE_CHECKING:
    from ..bench import Wanted
    from ..traffic import Result

COMPARE = "compare"


@dataclass
class Options:
    model: str | None = None
    """What to serve and measure: a folder, a .gguf file, or a hub id; with --url the name to ask for. Or the word compare, before one or two results."""

    a: Path | None = None
    """compare: a result, as --out writes it."""

    b: Path | None = None
    """compare: the result to judge against it; without it, the sides of the first are compared."""

    _: KW_ONLY

    url: str | None = None
    """A server that runs already and speaks OpenAI's API, such as http://127.0.0.1:8000. Without it, octavo serve MODEL is started."""

    api_key: str | None = None
    """Key of the server; default: OCTAVO_API_KEY, or none."""

    quantizations: str | None = None
    """Precisions to serve one after the other, with commas between: 16bit,8bit,4bit,nf4. The first is what the others are compared with."""

    serve_option: list[str] | None = None
    """A further option of octavo serve, such as --serve-option=--kv-cache=int8; may be repeated."""

    users: int = 100
    """Users who each ask again as soon as they have their answer (closed loop); with --sweep the most."""

    think: str = "0s"
    """Time that a user takes between an answer and the next question."""

    rate: float | None = None
    """Requests a second, whatever the server does (open loop), instead of users."""

    arrivals: Literal["poisson", "constant"] = "poisson"
    """How the requests of --rate come: at random, or at even distances."""

    sweep: bool = False
    """1, 2, 4 ... users up to --users, until the server gives no more tokens for them; each for --duration."""

    duration: str = "60s"
    """Time that is measured, such as 30s or 5m."""

    requests: int | None = None
    """Send so many requests instead, without a warm-up, and measure all of them."""

    warmup: str | None = None
    """Time under load before the measured one; default: a tenth of it."""

    prompts: Path | None = None
    """A .jsonl file of questions: text-to-SQL, chats, prompts (docs/bench.md). Without it: random words of --prompt-tokens."""

    prompt_tokens: int = 512
    """Length of random prompts."""

    output_tokens: int = 128
    """Tokens of an answer at most; exactly so many of random prompts, or with --ignore-eos."""

    ignore_eos: bool | None = None
    """Answers of exactly --output-tokens tokens, whatever the model would rather do."""

    temperature: float = 0.0
    """Of sampling; 0 takes the most likely token."""

    endpoint: Literal["chat", "completions"] = "chat"
    """Which endpoint to ask; completions where the model has no chat template."""

    timeout: str = "600s"
    """Time after which a request has failed."""

    seed: int = 0
    """Of random prompts, of the order of those of a file, and of arrivals."""

    runs: int = 1
    """How often to measure each side, so that compare can tell how much a server differs from start to start."""

    slo: str | None = None
    """What a request must keep to count as goodput, such as ttft=500ms,itl=50ms,latency=5s."""

    cost_per_hour: float | None = None
    """Price of the machine, for the cost of a million tokens."""

    quality: bool = True
    """Find out what each quantization lost, before it is measured (octavo serve --receipt before)."""

    confidence: float = 0.99
    """compare: how sure all its verdicts together shall be."""

    json: bool = False
    """Print JSON."""

    out: Path | None = None
    """Write all that was measured to this .json file, for compare."""

    csv: Path | None = None
    """Write the table to this .csv file."""

    html: Path | None = None
    """Write a page with the table and charts to this .html file; it needs no network."""


def run(options: Options) -> int:
    """Measure a server under load: latencies, first tokens, rates, errors, memory; precisions of a model side by side; whether two results differ."""
    if options.model == COMPARE and options.url is None:
        return _compare(options)
    if options.a is not None:
        raise UsageError(f"what is {str(options.a)!r} for?", where="octavo bench", remedy="octavo bench MODEL, or octavo bench compare A.json B.json")
    wanted = _wanted(options)
    for path in (options.out, options.csv, options.html):
        if path is not None and not path.resolve().parent.is_dir():
            raise UsageError("the folder is missing", where=str(path), remedy="make it first: measuring takes minutes")

    from ..bench import measure_sides
    from ._bench import Progress

    results: list[Result] = []
    with Progress(None if options.requests is not None else wanted.load.duration) as progress:
        for result in measure_sides(wanted, progress.tell):
            results.append(result)
            progress.say(result)
    _write(options, results)
    return 0 if all(r.summary.failed == 0 for r in results) else 1


def _wanted(options: Options) -> Wanted:
    from ..bench import Wanted
    from ..settings import read_settings
    from ..traffic import Closed, Load, Open, ServiceLevel, Target, seconds

    if options.model is None and options.url is None:
        raise UsageError("no server to measure", where="octavo bench", remedy="name a MODEL to serve, or a running server with --url")
    if options.url is not None and (options.quantizations or options.serve_option):
        raise UsageError("a server that runs already has its precision", where="--url", remedy="leave out --quantizations and --serve-option, or name a MODEL")
    if options.cost_per_hour is not None and not 0 <= options.cost_per_hour < float("inf"):
        raise UsageError(f"must be 0 or more, not {options.cost_per_hour}", where="--cost-per-hour")
    duration = seconds(options.duration, "--duration") if options.requests is None else None
    warmup = seconds(options.warmup, "--warmup") if options.warmup is not None else (duration or 0.0) / 10
    arrivals = (Open(options.rate, options.arrivals, options.seed) if options.rate is not None
                else Closed(options.users, seconds(options.think, "--think")))
    key = options.api_key if options.api_key is not None else read_settings().api_key
    target = Target(options.url or "http://127.0.0.1:1", (options.model or "") if options.url is not None else "", key, options.endpoint, options.temperature,
                    seconds(options.timeout, "--timeout"))
    return Wanted(
        target, Load(arrivals, duration, options.requests, warmup if options.requests is None else 0.0),
        model=options.model if options.url is None else None, precisions=_precisions(options.quantizations), serve=tuple(options.serve_option or ()),
        file=options.prompts, prompt_tokens=options.prompt_tokens, answer_tokens=options.output_tokens, ignore_end=options.ignore_eos, seed=options.seed,
        level=ServiceLevel.parse(options.slo) if options.slo else None, sweeping=options.sweep, quality=options.quality, runs=options.runs,
    )


def _precisions(text: str | None) -> tuple[str, ...]:
    """Checked before anything is started: the last of them would be found wrong after many minutes."""
    if text is None:
        return ("",)
    from ..machine import detect
    from ..schemes import choose

    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or len(set(names)) != len(names):
        raise UsageError(f"{text!r} is no list of different precisions", where="--quantizations", remedy="as in 16bit,8bit,4bit,nf4")
    machine = detect()
    for name in names:
        choose(name, machine)
    return names


def _write(options: Options, results: list[Result]) -> None:
    from ..bench import csv_text, html, rows
    from ..traffic import write_results
    from ._bench import show

    found = rows(results, options.cost_per_hour)
    if options.out is not None:
        write_results(options.out, results)
    for path, text in ((options.csv, csv_text), (options.html, None)):
        if path is not None:
            content = text(found) if text is not None else html(results, options.cost_per_hour, options.sweep)
            try:
                path.write_text(content, encoding="utf-8")
            except OSError as error:
                raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from None
    for path in (options.out, options.csv, options.html):
        if path is not None:
            print(f"wrote {path}", file=sys.stderr)
    if options.json:
        print(json.dumps({"rows": [{k: (None if v != v else v) for k, v in row.items()} for row in found], "summaries": [_plain(r) for r in results]}))
    else:
        show(results, found, sweeping=options.sweep)


def _plain(result: Result) -> dict[str, Any]:
    """A result without its single requests, which --out has."""
    return {name: value for name, value in result.to_json().items() if name != "requests"}


def _compare(options: Options) -> int:
    if options.a is None:
        raise UsageError("no result to compare", where="octavo bench compare", remedy="octavo bench compare A.json B.json, as --out writes them")
    if not 0.5 <= options.confidence < 1:
        raise UsageError(f"must be from 0.5 to below 1, not {options.confidence}", where="--confidence")
    from ..bench import compare
    from ..traffic import read_results
    from ._bench import show_pair

    pairs = compare(read_results(options.a), read_results(options.b) if options.b is not None else None, confidence=options.confidence)
    if options.json:
        print(json.dumps([{"a": p.a, "b": p.b, "different": p.different, "warnings": p.warnings,
                           "figures": [{k: None if v != v else v for k, v in vars(f).items()} for f in p.figures]} for p in pairs]))
    else:
        for pair in pairs:
            show_pair(pair, options.confidence)
    return 0


COMMAND = Command("bench", Options, run)
