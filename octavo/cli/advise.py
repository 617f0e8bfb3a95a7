"""`octavo advise MODEL`: which precision to serve a model in on this machine, for a goal or within limits, from measurements of it."""

from __future__ import annotations

import json
import sys
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UsageError
from ._command import Command

if TYPE_CHECKING:
    from ..advise import BreakEven, Candidate, Decision, Limits, Wanted
    from ..machine import Machine
    from ..schemes import Scheme


@dataclass
class Options:
    model: str | None = None
    """A Hugging Face folder, a .gguf file, or a hub id. Without it, only the table of hardware is shown."""

    _: KW_ONLY

    goal: Literal["latency", "memory", "cost", "edge", "quality"] | None = None
    """What to be best in, within the limits. Without it: the least loss within limits of speed or memory, or else latency."""

    p95: str | None = None
    """Limit: time from question to last token that 95 of 100 requests keep, such as 800ms or 2s."""

    per_token: str | None = None
    """Limit: time between two tokens of an answer, such as 50ms."""

    memory: str | None = None
    """Limit: memory of the serving process with every user at full length, such as 4GB or 600MB."""

    max_kl: float | None = None
    """Limit: mean KL divergence from the original in nats per token; default 0.1."""

    users: int | None = None
    """Users who ask at the same time; default: 1, and 16 for --goal cost."""

    prompt_tokens: int = 128
    """Length of a question."""

    output_tokens: int = 64
    """Length of an answer."""

    candidates: str | None = None
    """Precisions to try, with commas between; default: 16bit, 8bit, 4bit, both of these with an 8-bit cache, nf4."""

    against: str | None = None
    """The original that losses are measured against, where MODEL came quantized."""

    quality: bool = True
    """Measure what each candidate has lost, unless its receipt is known. Without it nothing is known to keep --max-kl."""

    device: str | None = None
    """Other hardware to choose for instead, such as H100 or "TPU v5e": a prediction. list: the names."""

    rounds: int = 2
    """How often everything is run, the candidates in turns; the least disturbed round counts."""

    cost_per_hour: float | None = None
    """Price of the machine, for the cost of a million tokens."""

    threads: int | None = None
    """Threads of the kernels; default and at most: as many as this process may use cores."""

    isa: str | None = None
    """Instruction set: portable, avx2, avx512vnni, avx512bf16, amx; default: the best there is."""

    allow_pickle: bool = False
    """Read pickled weights (.bin, .pt) where there are no others."""

    cache: bool = True
    """Keep what was quantized, and its receipts, for the next time."""

    cache_dir: Path | None = None
    """Where it is kept; default: OCTAVO_CACHE, or ~/.cache/octavo."""

    json: bool = False
    """Print JSON."""

    html: Path | None = None
    """Write a page with the table, the Pareto front and the break-even batches to this .html file; it needs no network."""


def run(options: Options) -> int:
    """What this machine multiplies itself, and the precision to take: measured candidates, the choice, the reasons, what would change it."""
    from ..advise import rows_of
    from ..machine import detect, find_gpus, shows_gpu
    from ..settings import read_settings

    limits, wanted = _limits(options), _wanted(options)
    machine = replace(detect(options.isa or read_settings().isa), gpus=find_gpus() if shows_gpu() else ())
    here = rows_of(machine)
    if options.model is None:
        print(json.dumps({"hardware": _hardware(here)}, indent=1) if options.json else _matrix(here))
        return 0
    if options.html is not None and not options.html.resolve().parent.is_dir():
        raise UsageError("the folder is missing", where=str(options.html), remedy="make it first: measuring takes minutes")
    device = _device(options.device)

    from ..advise import break_evens, decide, effective, html, measure

    candidates, schemes = measure(wanted, machine, _tell())
    evens = break_evens(candidates)
    if device is not None:
        candidates = _elsewhere(candidates, schemes, device)
    goal, _ = effective(options.goal, limits)
    if limits.memory is None:                            # what there is is a limit too, but no wish
        limits = replace(limits, memory=float(device.memory if device is not None else machine.memory_total))
    decision = decide(candidates, wanted.load, goal, limits, cost_per_hour=options.cost_per_hour)
    where = f"{device.name} (predicted)" if device is not None else f"{machine.cpu or machine.isa}, {machine.cores} cores, kernels {machine.isa}"
    if options.html is not None:
        try:
            options.html.write_text(html(options.model, where, decision, evens, here), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror}", where=str(options.html)) from None
        print(f"wrote {options.html}", file=sys.stderr)
    if options.json:
        print(json.dumps(_as_json(options.model, where, machine, decision, candidates, evens, here), indent=1))
    else:
        print(_matrix(here))
        _show(options.model, where, decision, evens)
    return 0 if decision.choice is not None else 1


def _limits(options: Options) -> Limits:
    from ..advise import Limits
    from ..traffic import seconds

    found = Limits(seconds(options.p95, "--p95") if options.p95 is not None else None,
                   seconds(options.per_token, "--per-token") if options.per_token is not None else None,
                   _bytes(options.memory, "--memory") if options.memory is not None else None, options.max_kl)
    for name, value in (("p95", found.p95), ("per-token", found.per_token), ("max-kl", found.max_kl), ("cost-per-hour", options.cost_per_hour)):
        if value is not None and not (0 <= value < float("inf") and (value > 0 or name in ("max-kl", "cost-per-hour"))):
            raise UsageError(f"must be above 0, not {value:g}", where=f"--{name}")
    return found


def _bytes(text: str, where: str) -> float:
    """"4GB" -> 4e9; units B, kB, MB, GB, TB, and KiB, MiB, GiB in powers of 1024; a bare number is bytes."""
    units = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
    plain = text.strip().lower()
    number = plain.rstrip("abcdefghijklmnopqrstuvwxyz")
    try:
        value = float(number) * units[plain[len(number):].strip()]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{text!r} is no amount of memory", where=where, remedy="such as 600MB or 4GB")
    return value


def _wanted(options: Options) -> Wanted:
    from ..advise import CANDIDATES, Load, Wanted

    users = options.users if options.users is not None else 16 if options.goal == "cost" else 1
    for name, value in (("users", users), ("prompt-tokens", options.prompt_tokens), ("output-tokens", options.output_tokens), ("rounds", options.rounds)):
        if value < 1:
            raise UsageError(f"must be above 0, not {value}", where=f"--{name}")
    names = CANDIDATES if options.candidates is None else tuple(name.strip() for name in options.candidates.split(",") if name.strip())
    if not names or len(set(names)) != len(names):
        raise UsageError(f"{options.candidates!r} is no list of different precisions", where="--candidates", remedy="as in 16bit,8bit,4bit")
    return Wanted(options.model or "", names, Load(users, options.prompt_tokens, options.output_tokens), rounds=options.rounds,
                  against=options.against, quality=options.quality, threads=options.threads, isa=options.isa, cache_dir=options.cache_dir,
                  use_cache=options.cache, allow_pickle=options.allow_pickle)


def _device(name: str | None) -> Any:
    from ..advise import DEVICES
    from ..errors import UnknownNameError

    if name is None:
        return None
    plain = {known.lower().replace(" ", ""): device for known, device in DEVICES.items()}
    if (found := plain.get(name.lower().replace(" ", ""))) is None:
        raise UnknownNameError("device", name, list(DEVICES))
    return found


def _elsewhere(candidates: list[Candidate], schemes: list[Scheme], device: Any) -> list[Candidate]:
    from ..advise import on_device

    found = [on_device(one, scheme, device) for one, scheme in zip(candidates, schemes, strict=True)]
    return [one for one in found if one is not None]


def _tell() -> Any:
    """What is being done, on the last line of a terminal; nothing in a file."""
    def tell(what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)

    return tell


def _hardware(here: frozenset[str]) -> list[dict[str, Any]]:
    from ..advise import MATRIX
    from ..advise.hardware import FORMATS, SOURCES

    return [{"key": row.key, "kind": row.kind, "name": row.name, "this_machine": row.key in here, "answers": dict(zip(FORMATS, row.answers, strict=True)),
             "note": row.note, "sources": [SOURCES[key] for key in row.sources]} for row in MATRIX]


def _matrix(here: frozenset[str]) -> str:
    from ..advise.hardware import SOURCES
    from ..advise.page import MATRIX_TITLES, matrix_rows
    from ._printing import columns

    lines = ["what hardware multiplies itself (native), widens on the way (emulated), or not; → is this machine", "",
             *columns([MATRIX_TITLES, *matrix_rows(here)]), "", *(f"  {key}: {text}" for key, text in SOURCES.items()), ""]
    return "\n".join(lines)


def _show(model: str, where: str, decision: Decision, evens: list[BreakEven]) -> None:
    from ..advise.page import TITLES, candidate_rows
    from ._printing import columns, printable

    load = decision.load
    print(f"{printable(model)} on {where}: {load.users} user{'s' if load.users > 1 else ''} at a time, {load.prompt} tokens in, {load.answer} out; "
          f"goal: {decision.goal}\n")
    print("\n".join(columns([TITLES, *candidate_rows(decision)])))
    print("  * no other is at least as good in latency, memory and loss, and better in one (--html draws it)\n")
    if decision.choice is not None:  # else the first reason says that there is none
        print(f"take {decision.choice.name}: --quantization {decision.choice.name}")
    for reason in decision.reasons:
        print(f"  {printable(reason)}")
    if decision.changes:
        print("what would change it")
        for change in decision.changes:
            print(f"  {change}")
    if evens:
        print("break-even batches")
        for one in evens:
            print(f"  {one}")
    for verdict in decision.verdicts:
        for note in verdict.outcome.candidate.notes:
            print(f"note, {verdict.outcome.name}: {printable(note)}", file=sys.stderr)


def _as_json(model: str, where: str, machine: Machine, decision: Decision, candidates: list[Candidate], evens: list[BreakEven],
             here: frozenset[str]) -> dict[str, Any]:
    from ..advise import as_json

    return {"model": model, "on": where, "machine": {"cpu": machine.cpu, "isa": machine.isa, "cores": machine.cores, "fingerprint": machine.fingerprint},
            "decision": decision.to_json(), "measurements": [as_json(one) for one in candidates], "break_even": [one.to_json() for one in evens],
            "hardware": _hardware(here)}


COMMAND = Command("advise", Options, run)
