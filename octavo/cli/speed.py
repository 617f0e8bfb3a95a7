"""`octavo speed MODEL`: how fast prompts and answers are, held against what this machine can do."""

from __future__ import annotations

import json
import sys
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError
from ._command import Command
from ._model import load_model
from ._policy import PolicyOptions, use_policy

if TYPE_CHECKING:
    from ..ceilings import Rates
    from ..loading import LoadedModel
    from ..speed import Row


@dataclass
class Options(PolicyOptions):
    _: KW_ONLY

    prompt: str = "512,2048"
    """Lengths of prompts in tokens, with commas between; 0: none."""

    new: int = 128
    """Tokens of each answer."""

    batch: str = "1,16,32"
    """Numbers of sequences that decode together, with commas between; 0: none."""

    context: int = 128
    """Tokens of each sequence before its answer."""

    repetitions: int = 5
    """Runs of each prompt, and stretches of the answers, whose rates are compared."""

    json: bool = False
    """Print JSON."""

    remeasure: bool = False
    """Measure the machine's ceilings again, whatever was kept."""


def run(options: Options) -> int:
    """Prefill and decode rates with their spread, bytes and operations of a step, and the share of this machine's ceilings."""
    prompts, batches = _numbers(options.prompt, "--prompt"), _numbers(options.batch, "--batch")
    for name in ("new", "context", "repetitions"):
        if getattr(options, name) < 1:
            raise UsageError(f"must be above 0, not {getattr(options, name)}", where=f"--{name}")
    if not prompts and not batches:
        raise UsageError("there is nothing to measure", where="--prompt 0 --batch 0", remedy="give at least one length or one number of sequences")

    from ..ceilings import ceilings
    from ..machine import detect
    from ..settings import read_settings
    from ..speed import as_json
    from ..workloads import native_program

    settings = read_settings()
    machine = detect(options.isa or settings.isa)
    known = ceilings(machine, options.cache_dir or settings.cache_dir, again=options.remeasure, note=lambda text: print(text, file=sys.stderr))
    loaded = load_model(options)
    _, told = use_policy(options, loaded, engine=())
    if told:
        print(told, file=sys.stderr)
    rates = known.of(native_program(loaded).threads)
    rows = _measure(loaded, rates, prompts, batches, options)
    if options.json:
        print(json.dumps(as_json(loaded, machine, known, rates.threads, rows), indent=1))
    else:
        print(f"{loaded.name} as {loaded.plan.short}, {rates.threads} threads, {machine.isa}\n")
        _show(rows)
        print(f"\nceilings: {rates.read_rate(loaded.report.weight_bytes) / 1e9:.1f} GB/s for the weights, {rates.ints / 1e12:.2f} TOPS int8, "
              f"{rates.floats / 1e12:.2f} TOPS float32")
    return 0


def _numbers(text: str, where: str) -> list[int]:
    """`512,2048` -> [512, 2048]; `0` -> []."""
    parts = [part.strip() for part in text.split(",")]
    if parts == ["0"]:
        return []
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"whole numbers above 0 with commas between expected, not {text!r}", where=where, remedy="as in 512,2048; 0 for none")
    return [int(part) for part in parts]


def _measure(loaded: LoadedModel, rates: Rates, prompts: list[int], batches: list[int], options: Options) -> list[Row]:
    from rich.console import Console
    from rich.progress import Progress

    from ..speed import measure

    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=None)

    def note(what: str, done: int, total: int) -> None:
        bar.update(task, description=what, completed=done, total=total)

    with bar:
        return list(measure(loaded, rates, prompts=prompts, batches=batches, new=options.new, context=options.context,
                            repetitions=options.repetitions, note=note))


def _show(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width of its own
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what")
    for title in ("prompt", "batch", "tokens/s", "min", "max", "ms a step", "weights MB", "cache MB", "G int ops", "G float ops", "of ceiling", "bound by",
                  "Python"):
        table.add_column(title, justify="right", no_wrap=True)
    for r in rows:
        table.add_row(r.what, str(r.prompt), str(r.batch), f"{r.tokens_per_s:.1f}", f"{r.min:.1f}", f"{r.max:.1f}", f"{1e3 * r.step_seconds:.2f}",
                      f"{r.weight_bytes / 1e6:.1f}", f"{r.cache_bytes / 1e6:.1f}", f"{r.int_ops / 1e9:.2f}", f"{r.float_ops / 1e9:.2f}",
                      f"{r.share_of_ceiling:.0%}", r.bound, f"{r.outside_native_share:.1%}")
    console.print(table)


COMMAND = Command("speed", Options, run)
