"""`octavo evaluate MODEL [--against ORIGINAL] --text FILE`: how well a model predicts a text, and what it has lost against its original."""

from __future__ import annotations

import json
import sys
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ._command import Command
from ._model import ModelOptions, load_model

if TYPE_CHECKING:
    from ..evaluate import Evaluation


@dataclass
class Options(ModelOptions):
    _: KW_ONLY

    against: str | None = None
    """The original to compare with: a folder, a .gguf file, or a hub id; may be the same as MODEL. --quantization is of MODEL alone."""

    against_quantization: str | None = None
    """The original's precision; default: what it is stored in, or 16 bits."""

    text: str | None = None
    """A UTF-8 text, a .jsonl file with a document a line, wikitext2 (from the hub), or receipt (the text of receipts, as they are measured)."""

    context: int | None = None
    """Tokens a window; default: 1024, or what the model takes. Perplexities of different contexts cannot be compared."""

    windows: int | None = None
    """Most windows to score; default: the whole text."""

    by_layer: bool = False
    """Measure what each layer loses by itself: a short run for every layer."""

    long: str | None = None
    """Lengths to check long contexts at, such as 1k,4k,16k: KL there, and whether copies and needles are found."""

    long_windows: int | None = None
    """Windows of each of these lengths; default: 8, fewer of long ones (32k tokens in all, but 2 at least). Few give wide intervals."""

    tasks: str | None = None
    """Tasks for lm-eval (the extra octavo[eval]), separated by commas: those of --task-data, lm-eval's own, or its YAML files."""

    task_data: Path | None = None
    """A folder with the tasks' questions: hellaswag*.jsonl, piqa*.jsonl, arc-easy*.jsonl, mmlu*.jsonl and so on."""

    limit: int | None = None
    """Most questions of each task."""

    shots: int = 0
    """Examples before each question."""

    plots: Path | None = None
    """A folder to write plots into: KL by position, of tokens, and by layer with --by-layer."""

    one_at_a_time: bool = False
    """Never hold both models in memory: the original's logits go through a temporary file."""

    json: bool = False
    """Print JSON."""


def run(options: Options) -> None:
    """Perplexity of a text; with --against also KL divergence, agreement and more, each with a 95% interval."""
    if options.text is None and not options.tasks:
        raise UsageError("no text to predict", where="--text", remedy="name a file, such as WikiText-2's test part, or wikitext2; or give --tasks")
    _check_needed(options)
    lengths = _lengths(options.long)

    from ..evaluate import evaluate, evaluate_tasks
    from ..quality import OWN_TEXT, read_text
    from ..quality.receipt_of import CONTEXT as RECEIPT_CONTEXT
    from ..quality.receipt_of import WINDOWS as RECEIPT_WINDOWS

    plain = replace(options, model=options.against or "", quantization=options.against_quantization, kv_cache=None, max_kl=None)
    original = (lambda: load_model(plain)) if options.against is not None else None
    tell = _progress if sys.stderr.isatty() else None
    done = None
    if options.text is not None:
        text = read_text(options.text)
        as_receipts = text is OWN_TEXT and options.context is None
        context = RECEIPT_CONTEXT if as_receipts else options.context
        windows = RECEIPT_WINDOWS if as_receipts and options.windows is None else options.windows
        done = evaluate(lambda: load_model(options), original, text, context=context, windows=windows, by_layer=options.by_layer,
                        lengths=lengths, long_windows=options.long_windows, one_at_a_time=options.one_at_a_time, on_progress=tell)
        if options.plots is not None:
            from ..evaluate.plots import write_plots

            for path in write_plots(done, options.plots):
                print(f"wrote {path}", file=sys.stderr)
    if options.tasks:
        from ..evaluate.harness import Harness

        names = [name.strip() for name in options.tasks.split(",") if name.strip()]
        scored = evaluate_tasks(lambda: load_model(options), original, Harness(names, options.task_data, options.limit, options.shots), tell)
        if done is None:
            done = scored
        done.tasks = scored.tasks
    assert done is not None
    if options.json:
        print(json.dumps(done.to_json()))
    else:
        _show(done)


def _check_needed(options: Options) -> None:
    """Raises UsageError for what would be left out for want of another option, before anything is loaded."""
    for option, given in (("--by-layer", options.by_layer), ("--plots", options.plots is not None)):
        if given and options.against is None:
            raise UsageError("shows what was lost against an original", where=option, remedy="name the original with --against")
    for option, given in (("--by-layer", options.by_layer), ("--plots", options.plots is not None), ("--long", options.long is not None)):
        if given and options.text is None:
            raise UsageError("needs a text", where=option, remedy="name it with --text")
    if options.long_windows is not None and (options.long is None or options.long_windows < 1):
        raise UsageError("counts the windows of --long, one at least", where="--long-windows", remedy="give --long 1k,4k with it")


def _lengths(text: str | None) -> list[int]:
    """"1k,4k,500" -> [1024, 4096, 500]."""
    found = []
    for part in (text or "").lower().split(",") if text else []:
        number = part.strip().removesuffix("k")
        if not number.isdigit() or int(number) < 1:
            raise UsageError(f"cannot read {part!r}", where="--long", remedy="give lengths in tokens, such as 1k,4k,16k")
        found.append(int(number) * (1024 if part.strip().endswith("k") else 1))
    return found


def _progress(stage: str, done: int, total: int) -> None:
    print(f"\r{stage}: {done}{f' of {total}' if total else ''}\033[K", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _show(done: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    found = done.to_json()
    console = Console(soft_wrap=True)
    against = f" against {found['original']['model']} as {found['original']['plan']}" if "original" in found else ""
    console.print(f"{found['model']} as {found['plan']}, {found['cache']} cache{against}", markup=False, highlight=False)
    if "layers" in (cache := found["kv_cache"]):
        each = "; ".join(f"{name} in layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}" for name, layers in cache["layers"].items())
        console.print(f"key-value cache by sensitivity: {each}; {cache['bytes_per_token']} bytes per token instead of {cache['bytes_with_bf16']}; "
                      f"KL {_number(cache['kl'])} of {cache['allowed']:g} allowed, measured on {cache['tokens']} tokens", markup=False, highlight=False)
    if "perplexity" in found:
        console.print(f"{found['text']}: {found['tokens']} tokens in {found['windows']} windows of {found['context']}", markup=False, highlight=False)
        table = Table("", "value", "95% interval")
        for label, number in _rows(found):
            table.add_row(label, _number(number["value"]), _span(number))
        console.print(table)
    if "kl_by_layer" in found:
        layers = Table("only this from the model", "mean KL", "95% interval")
        for part in found["kl_by_layer"]:
            layers.add_row(part["part"], _number(part["kl"]["value"]), _span(part["kl"]))
        console.print(layers)
    for one in found.get("long", ()):
        console.print("\n".join(_long_lines(one)), markup=False, highlight=False)
    if "tasks" in found:
        console.print(_tasks(found["tasks"]))
    for note in found.get("notes", ()):
        console.print(f"note: {note}", markup=False, highlight=False)


def _rows(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    rows = [("perplexity", found["perplexity"])]
    if "kl" not in found:
        return rows
    kl, shift = found["kl"], found["probability_shift"]
    rows += [("original's perplexity", found["original_perplexity"]), ("perplexity ratio (paired)", found["perplexity_ratio"]),
             ("KL mean (nats per token)", {"value": kl["mean"], "low": kl["low"], "high": kl["high"]}),
             *((f"KL {name}", {"value": kl[key], "low": (kl.get(f"{key}_interval") or [None])[0], "high": (kl.get(f"{key}_interval") or [None])[-1]})
               for name, key in (("median", "median"), ("99%", "p99"), ("max", "max"))),
             ("top-1 agreement", found["top1_agreement"]), ("probability of the right token, mean shift", shift["mean"]), ("  RMS shift", shift["rms"])]
    if found["broken_tokens"]:
        rows.append(("tokens without sound logits", {"value": found["broken_tokens"]}))
    return rows


def _long_lines(one: dict[str, Any]) -> list[str]:
    """A line for the length, one for each task, one for what was not measured."""
    kl = f", {one['windows']} windows: KL {_with_span(one['kl'])}, at the end {_with_span(one['kl_at_end'])}" if "kl" in one else ""
    lines = [f"{one['length']} tokens{kl}"]
    for place, task in enumerate(one.get("model", ())):
        sides = [(who, one[key][place]) for who, key in (("", "model"), ("original ", "original"), ("paired difference ", "difference")) if key in one]
        lines.append(f"  {task['task']}: " + "; ".join(f"{who}{_with_span(it['exact'])} exact, {_with_span(it['tokens'])} of tokens" for who, it in sides))
    return lines + ([f"  note: {one['note']}"] if "note" in one else [])


def _tasks(found: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("task", "metric", "value", "95% interval", "original", "difference or ratio (paired)")
    for task, metrics in found.items():
        for metric, one in metrics.items():
            if isinstance(one, dict):
                change = one.get("difference") or one.get("ratio")
                before = _number(one["original"]["value"]) if "original" in one else ""
                table.add_row(f"{task} ({metrics['documents']})", metric, _number(one["value"]), _span(one), before,
                              "" if change is None else f"{_number(change['value'])} ({_span(change)})")
    return table


def _span(one: dict[str, Any]) -> str:
    """The interval; one end alone where only that is known."""
    low, high = one.get("low"), one.get("high")
    if low is None and high is None:
        return ""
    return f"{_number(low)} at least" if high is None else f"{_number(high)} at most" if low is None else f"{_number(low)} to {_number(high)}"


def _with_span(one: dict[str, Any]) -> str:
    return f"{_number(one['value'])} ({_span(one)})" if _span(one) else _number(one["value"])


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.5g}"


COMMAND = Command("evaluate", Options, run)
