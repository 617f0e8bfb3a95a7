"""`octavo evaluate MODEL --text FILE`: how well the model, in the precision given, predicts a text."""

from __future__ import annotations

import json
import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from ..errors import UsageError
from ._command import Command
from ._model import ModelOptions, load_model


@dataclass
class Options(ModelOptions):
    _: KW_ONLY

    text: Path | None = None
    """The text, UTF-8 (required). WikiText-2 is what the numbers in papers are of."""

    context: int = 1024
    """Tokens a window. Perplexities of different contexts cannot be compared."""

    windows: int | None = None
    """Most windows to score; default: the whole text."""

    json: bool = False
    """Print JSON."""


def run(options: Options) -> None:
    """Perplexity of a text, with a 95% interval."""
    if options.text is None:
        raise UsageError("no text to predict", where="--text", remedy="name a file, such as WikiText-2's validation split")
    try:
        text = options.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the text: {error}", where=str(options.text)) from None

    from ..quality import perplexity

    def show(done: int, total: int, value: float) -> None:
        if sys.stderr.isatty():
            print(f"\rwindow {done} of {total}: perplexity {value:.3f}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    loaded = load_model(options)
    result = perplexity(loaded, text, context=options.context, windows=options.windows, on_window=show)
    if options.json:
        print(json.dumps({
            "model": loaded.name, "plan": str(loaded.plan), "cache": loaded.cache_spec.format, "text": options.text.name, "context": options.context,
            "windows": result.windows, "tokens": result.tokens, "perplexity": result.value, "low": result.low, "high": result.high,
        }))
        return
    print(f"{loaded.name} as {loaded.plan.short}, {loaded.cache_spec.format} cache")
    print(f"perplexity {result.value:.4f}, 95% interval {result.low:.4f} to {result.high:.4f} "
          f"({result.tokens} tokens in {result.windows} windows of {options.context})")


COMMAND = Command("evaluate", Options, run)
