"""`octavo trace MODEL`: where the time of a step goes, op by op, held against what this machine can do."""

from __future__ import annotations

import json
import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OctavoError, UsageError
from ._command import Command
from ._model import ModelOptions, load_model

if TYPE_CHECKING:
    from ..loading import LoadedModel
    from ..workloads import Timed

WARM_STEPS = 4  # not counted: caches and the team wake up
PROMPTS = 3     # times a prompt is run; the first is not counted


@dataclass
class Options(ModelOptions):
    _: KW_ONLY

    prompt: int | None = None
    """Trace a prompt of this many tokens, in chunks as the server computes it; default: decoding."""

    batch: int = 1
    """Sequences that decode together."""

    context: int = 128
    """Tokens of each sequence before the steps that are traced."""

    steps: int = 32
    """Decoding steps to trace."""

    json: Path | None = None
    """Write all events to this file, for chrome://tracing or ui.perfetto.dev."""

    summary: bool = False
    """Print the sums as JSON instead of the table."""

    remeasure: bool = False
    """Measure the machine's ceilings again, whatever was kept."""


def run(options: Options) -> int:
    """Time per op, bytes, rates against this machine's ceilings, and the gaps between ops."""
    for name in ("prompt", "batch", "context", "steps"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UsageError(f"must be above 0, not {value}", where=f"--{name}")
    if options.prompt is not None and (options.batch, options.context) != (Options.batch, Options.context):
        raise UsageError("a prompt is traced alone", where="--prompt", remedy="leave out --batch and --context, or --prompt")

    from ..ceilings import ceilings
    from ..machine import detect
    from ..settings import read_settings
    from ..trace import chrome_trace, show, summarize
    from ..workloads import native_program

    settings = read_settings()
    machine = detect(options.isa or settings.isa)
    found = ceilings(machine, options.cache_dir or settings.cache_dir, again=options.remeasure, note=_note)
    loaded = load_model(options)
    rates = found.of(native_program(loaded).threads)
    steps = _steps(loaded, options)
    summary = summarize(loaded, steps, rates)
    if options.json is not None:
        _write(options.json, json.dumps(chrome_trace(loaded, steps)))
    if options.summary:
        print(json.dumps({"model": loaded.name, "scheme": str(loaded.plan), "what": "decode" if options.prompt is None else "prefill",
                          **summary.as_json(rates)}, indent=1))
    else:
        what = f"decode, batch {options.batch}, context {options.context}" if options.prompt is None else f"prompt of {options.prompt} tokens"
        print(f"{loaded.name} as {loaded.plan.short}: {what}, {rates.threads} threads, {machine.isa}\n")
        show(summary, rates)
    return 0


def _steps(loaded: LoadedModel, options: Options) -> list[Timed]:
    from ..workloads import decode, prefill

    if options.prompt is None:
        return decode(loaded, options.batch, options.context, WARM_STEPS + options.steps, traced=True)[WARM_STEPS:]
    runs = list(prefill(loaded, options.prompt, repetitions=PROMPTS, traced=True))
    return [step for run in runs[1:] for step in run]


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise OctavoError(f"cannot write: {error.strerror}", where=str(path)) from None


COMMAND = Command("trace", Options, run)
