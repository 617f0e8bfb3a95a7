"""`octavo tune MODEL`: measure which kernels, threads, chunks and batches are fastest here, and keep what is surely faster."""

# No `from __future__ import annotations`: see _model.py.
import sys
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

from ._command import Command
from ._model import ModelOptions, load_model


@dataclass
class Options(ModelOptions):
    _: KW_ONLY

    policy_dir: Path | None = None
    """Where the policy is written, for `octavo serve --policy-dir`; default: `policies` in the cache folder."""

    budget: float | None = None
    """Seconds to search, after the model is loaded; default: 130, on a GPU, where every candidate is compiled first, 600."""

    allow_kv: list[str] | None = None
    """A format that the key-value cache may get (int8, bf16), though the numbers change; may be repeated. Default: it stays as it is."""

    longest_step: float = 0.5
    """Seconds that users may wait for a token because others' prompts or a larger batch are computed."""

    against_itself: bool = False
    """Give every choice the default as its only candidate: what the search says where there is nothing to find. Nothing is written."""

    json: bool = False
    """Print the policy as JSON instead of the table."""


def run(options: Options) -> int:
    """Search the fastest way to run a model on this machine; keeps a default unless something is surely faster."""
    import json

    from rich.console import Console

    from ..engine.options import served_limits
    from ..settings import read_settings
    from ..tune import Progress, TuneOptions, table, tune
    from ..tune.options import GPU_BUDGET

    settings = read_settings()
    folder = options.policy_dir or (options.cache_dir or settings.cache_dir) / "policies"
    tune_options = TuneOptions(
        budget=TuneOptions.budget if options.budget is None else options.budget, allow_kv=tuple(options.allow_kv or ()),
        fixed_threads=(options.threads or settings.threads) is not None, longest_step=options.longest_step, against_itself=options.against_itself)
    loaded = load_model(options)
    if loaded.backend.memory() is not None:
        batch, rows = served_limits(True)
        tune_options = replace(tune_options, max_batch=batch, max_batch_tokens=rows, budget=GPU_BUDGET if options.budget is None else options.budget)
    try:
        with Progress(tune_options.budget) as progress:
            tuned = tune(loaded, folder, progress, tune_options)
    except KeyboardInterrupt:
        if not options.against_itself:
            print(f"interrupted; what was measured is kept in {folder}: the same command goes on from there", file=sys.stderr)
        raise
    for note in tuned.notes:
        print(note, file=sys.stderr)
    if options.json:
        print(json.dumps(tuned.policy.to_json(), indent=1, ensure_ascii=False))
    else:
        console = Console()
        Console(width=console.width if console.is_terminal else 150).print(table(tuned))
    if tuned.path is not None:
        print(f"written: {tuned.path}", file=sys.stderr)
    return 0


COMMAND = Command("tune", Options, run)
