"""`octavo validate MODEL --against ORIGINAL`: the checklist before production, measured and judged; a report to sign."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import KW_ONLY, MISSING, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError
from ._command import Command
from ._model import ModelOptions, load_model
from ._printing import columns, printable

if TYPE_CHECKING:
    from ..validate import Report, Wanted

FAILED = 1
OURS = ("host", "port", "receipt", "page")  # options of octavo serve


@dataclass
class Options(ModelOptions):
    _: KW_ONLY

    against: str | None = None
    """The original: a folder, a .gguf file, or a hub id; default: MODEL as it is stored, where --quantization is given."""

    against_quantization: str | None = None
    """The original's precision; default: what it is stored in, or 16 bits."""

    limits: Path | None = None
    """A .toml or .json file with what each line must keep (docs/validate.md has all names and defaults)."""

    text: str = "receipt"
    """Held-out text: a UTF-8 file, a .jsonl file, wikitext2 (from the hub), or receipt (a few hundred words that come with Octavo)."""

    context: int | None = None
    """Tokens a window; default: 512, of --text receipt 128."""

    windows: int = 32
    """Most windows of the text."""

    users: int = 20
    """Users who each ask again as soon as they have their answer."""

    duration: str = "60s"
    """Time under load that is measured of each model, in --runs equal parts."""

    requests: int | None = None
    """Send so many requests to each model in each run instead, without a warm-up."""

    runs: int = 3
    """The two models are measured in turns, so often each, on a server just started."""

    prompts: Path | None = None
    """A .jsonl file of questions (docs/bench.md). Without it: random words of --prompt-tokens."""

    prompt_tokens: int = 128
    """Length of random prompts."""

    output_tokens: int = 64
    """Tokens of an answer at most; exactly so many of random prompts."""

    endpoint: Literal["auto", "chat", "completions"] = "auto"
    """Which endpoint to ask; auto: chat where the model has a chat template."""

    serve_option: list[str] | None = None
    """A further option of octavo serve for both, such as --serve-option=--max-batch=64; may be repeated."""

    cost_per_hour: float | None = None
    """Price of the machine, for the cost of a million tokens."""

    alerts: Path = Path("octavo-monitoring")
    """The rules file of Prometheus, or the folder that octavo monitor export wrote it to."""

    out: Path = Path("octavo-validation")
    """Folder for report.html, report.json, badge.svg and badge.md."""

    json: bool = False
    """Print the report as JSON."""


def run(options: Options) -> int:
    """Measure a model against its original: accuracy, latency, rate, load, cost, memory, settings, alerts. Exit status 1 where a line fails."""
    wanted = _wanted(options)

    from ..validate import validate, write
    from ._bench import Progress

    with _folder(options.out.expanduser()) as folder:
        with Progress(wanted.traffic.load.duration) as progress:
            report = validate(wanted, progress.tell)
        for path in write(report, folder):
            print(f"wrote {printable(str(path))}", file=sys.stderr)
    if options.json:
        print(json.dumps(report.to_json(), allow_nan=False))
    else:
        _show(report)
    return 0 if report.passed else FAILED


def _wanted(options: Options) -> Wanted:
    """Whatever can be wrong with the options is found here, before minutes are spent."""
    from ..machine import detect
    from ..quality import OWN_TEXT, read_text
    from ..schemes import choose
    from ..traffic import Closed, Load, read_prompts, seconds
    from ..validate import Limits, Wanted, read_limits
    from ..validate.load import Side, Traffic

    if options.against is None and options.quantization is None:
        raise UsageError("no original to compare with", where="--against", remedy="name what MODEL was made of, or give --quantization")
    for name in ("runs", "windows", "prompt_tokens", "output_tokens"):
        if getattr(options, name) < 1:
            raise UsageError(f"must be above 0, not {getattr(options, name)}", where=f"--{name.replace('_', '-')}")
    if options.cost_per_hour is not None and not 0 <= options.cost_per_hour < float("inf"):
        raise UsageError(f"must be 0 or more, not {options.cost_per_hour}", where="--cost-per-hour")
    for asked in (options.quantization, options.against_quantization):
        if asked is not None:
            choose(asked, detect(options.isa))
    limits = read_limits(options.limits.expanduser()) if options.limits is not None else Limits()
    duration = seconds(options.duration, "--duration") / options.runs if options.requests is None else None
    load = Load(Closed(options.users), duration, options.requests, (duration or 0.0) / 10)
    if options.prompts is not None:
        read_prompts(options.prompts, options.output_tokens)
    text = read_text(options.text)
    plain = replace(options, model=options.against or options.model, quantization=options.against_quantization, kv_cache=None, max_kl=None)
    more = tuple(options.serve_option or ())
    if more:
        _check_served(list(more))
    return Wanted(
        lambda: load_model(options), lambda: load_model(plain), Side("model", options.model, (*_served(options), *more)),
        Side("original", plain.model, (*_served(plain), *more)), text,
        Traffic(load, options.runs, "completions" if options.endpoint == "auto" else options.endpoint, options.prompts, options.prompt_tokens,
                options.output_tokens),
        limits, options.alerts, options.quantization, options.against_quantization, options.endpoint == "auto",
        options.context, 128 if text is OWN_TEXT else 512, options.windows, options.cost_per_hour, options.allow_pickle, options.cache_dir,
        _command(options),
    )


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """It can be written to, which is found out before minutes are spent; one made here goes again where nothing came of them."""
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(path, os.W_OK) else "no permission"
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise UsageError(f"cannot be written to: {reason}", where=str(path), remedy="choose another folder with --out")
    try:
        yield path
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        raise


def _command(options: Options) -> str:
    """The command line that asks for this, without what is so anyway."""
    words = ["octavo", "validate", options.model]
    for field in fields(options):
        value, flag = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if field.default is MISSING or value == field.default:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [f"{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _check_served(more: list[str]) -> None:
    """What octavo serve would not take is found here. A key would stand in the report."""
    from cyclopts import CycloptsError

    from ._app import build
    from .serve import COMMAND as SERVE

    try:
        _, bound, *_ = build([SERVE]).parse_args(["serve", "model", *more], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UsageError(f"octavo serve does not take it: {error}", where="--serve-option", remedy="octavo serve --help says what it takes") from None
    given = bound.arguments["options"]
    if given.api_key is not None:
        raise UsageError("a key would stand in the report", where="--serve-option=--api-key", remedy="set OCTAVO_API_KEY")
    for name in OURS:
        if getattr(given, name) != getattr(SERVE.options, name):
            raise UsageError("is set by octavo validate itself", where=f"--serve-option=--{name.replace('_', '-')}", remedy="leave it out")


def _served(options: ModelOptions) -> list[str]:
    """The options of the model, as `octavo serve` takes them."""
    found = []
    for name in ("quantization", "kv_cache", "max_kl", "backend", "device", "threads", "isa", "max_model_len", "cache_dir"):
        value = getattr(options, name)
        if value is not None:
            found += [f"--{name.replace('_', '-')}", str(value)]
    return [*found, *(["--allow-pickle"] if options.allow_pickle else []), *([] if options.cache else ["--no-cache"])]


def _show(report: Report) -> None:
    from ..validate import markdown
    from ..validate.page import SIGNS, measured

    print(f"{printable(report.name)} against {printable(report.original_name)}: {report.verdict} ({report.seconds:.0f} s)\n")
    print("\n".join(columns([["", "result", "measured", "limit", "original"], *(
        [line.title, SIGNS[line.status], measured(line.value, line.unit), line.limit, measured(line.original, line.unit)] for line in report.lines)])))
    print("  x: times the original's")
    for line in report.lines:
        if line.status != "pass":
            print(f"\n{line.title}: {line.status}: {printable(line.evidence)}")
    for note in report.notes:
        print(f"note: {printable(note)}")
    print(f"\n{printable(markdown(report))}")


COMMAND = Command("validate", Options, run)
