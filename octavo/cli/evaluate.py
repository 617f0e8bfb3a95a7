"""`octavo evaluate MODEL --text FILE`: how well the model, in the precision given, predicts a text."""

from __future__ import annotations

import json
import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from ..errors import UsageError
from ._command import Command


@dataclass
class Options:
    model: str
    """A Hugging Face folder, a .gguf file, or a hub id."""

    _: KW_ONLY

    text: Path
    """The text, UTF-8. WikiText-2 is what the numbers in papers are of."""

    quantization: str | None = None
    """A preset (16bit, 8bit, 4bit) or a scheme, such as W4g64A8; default: what the model is stored in."""

    kv_cache: str | None = None
    """Precision of the key-value cache: bf16, int8."""

    context: int = 1024
    """Tokens a window. Perplexities of different contexts cannot be compared."""

    windows: int | None = None
    """Most windows to score; default: the whole text."""

    threads: int | None = None
    """Threads of the kernels; default: as many as there are cores."""

    json: bool = False
    """Print JSON."""


def run(options: Options) -> None:
    """Perplexity of a text, with a 95% interval."""
    try:
        text = options.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the text: {error}", where=str(options.text)) from None

    from ..loading import load
    from ..quality import perplexity

    def show(done: int, total: int, value: float) -> None:
        if sys.stderr.isatty():
            print(f"\rwindow {done} of {total}: perplexity {value:.3f}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    loaded = load(options.model, quantization=options.quantization, kv_cache=options.kv_cache, threads=options.threads)
    result = perplexity(loaded, text, context=options.context, windows=options.windows, on_window=show)
    if options.json:
        print(json.dumps({"model": loaded.name, "plan": str(loaded.plan), "cache": loaded.cache_spec.format, "text": options.text.name, "context": options.context,
                          "windows": result.windows, "tokens": result.tokens, "perplexity": result.value, "low": result.low, "high": result.high}))
        return
    print(f"{loaded.name} as {loaded.plan}, {loaded.cache_spec.format} cache")
    print(f"perplexity {result.value:.4f}, 95% interval {result.low:.4f} to {result.high:.4f} "
          f"({result.tokens} tokens in {result.windows} windows of {options.context})")


COMMAND = Command("evaluate", Options, run)
