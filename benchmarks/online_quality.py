"""How much of a model is left in each scheme: perplexity, divergence from 16bit and agreement with it, all on the same windows.

    python benchmarks/online_quality.py TEXT MODEL=NOTE [MODEL=NOTE ...] [--windows 48] [--context 1024]

MODEL is a .gguf file or a Hugging Face folder, NOTE what to say of it in the docs. All schemes of a model are loaded together and step
through the text side by side, so that their logits meet row by row and need not be stored. Writes benchmarks/results/quality.json and
docs/quality.md, and ends with status 1 when 8bit is not within 1.0% of 16bit or the 8-bit cache not within 0.5%.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import report

from octavo.layers import declare
from octavo.loading import LoadedModel, load
from octavo.quality import Windows, kl_divergence, logits_of, mean_interval, negative_log_likelihood, same_top, summarize, windows_of

# (name in the table, quantization, bar for the change of perplexity against the first)
SCHEMES: tuple[tuple[str, str, float | None], ...] = (
    ("16bit", "16bit", None),
    ("16bit, 8-bit cache (C8)", "W16A16C8", 0.005),
    ("W8A16", "W8A16", 0.01),
    ("8bit", "8bit", 0.01),
    ("W8g64A8h", "W8g64A8h", None),
    ("W8g64A8g64", "W8g64A8g64", 0.01),
    ("W8A8", "W8A8", None),
    ("W8A8, 8-bit cache", "W8A8C8", None),
    ("W4g64A16", "W4g64A16", None),
    ("4bit", "4bit", None),
    ("W4g64A8", "W4g64A8", None),
    ("WNF4", "WNF4", None),
)
EVERY = 4  # divergence and agreement are taken at every fourth row: they cost more than the forward otherwise


@dataclass
class Tally:
    """What has been measured of one scheme, per scored token (losses) or per EVERY-th (kl, same)."""

    name: str
    bar: float | None
    model: LoadedModel
    losses: list[np.ndarray] = field(default_factory=list)
    kl: list[np.ndarray] = field(default_factory=list)
    same: list[np.ndarray] = field(default_factory=list)

    def add(self, reference: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> None:
        self.losses.append(negative_log_likelihood(logits, targets))
        self.kl.append(kl_divergence(reference[::EVERY], logits[::EVERY]))
        self.same.append(same_top(reference[::EVERY], logits[::EVERY]))

    def row(self, windows: Windows, reference: Tally) -> dict[str, Any]:
        losses = np.concatenate(self.losses)
        mine = summarize(losses, windows)
        difference = losses - np.concatenate(reference.losses)
        low, high = mean_interval(difference, int(windows.scored[0]))
        return {"name": self.name, "scheme": str(self.model.plan.default), "bits": bits_per_weight(self.model),
                "perplexity": mine.value, "low": mine.low, "high": mine.high,
                "ratio": math.exp(difference.mean()), "ratio_low": math.exp(low), "ratio_high": math.exp(high),
                "kl": float(np.concatenate(self.kl).mean()), "same_top": float(np.concatenate(self.same).mean())}


def bits_per_weight(model: LoadedModel) -> float:
    """Bits of a weight on average over the model's matrices, scales included."""
    numbers = size = 0
    for want in declare(model.model.describe).wanted.values():
        if want.uses and (scheme := model.plan.scheme_for(want.name)) is not None:
            numbers += math.prod(want.shape)
            size += scheme.weight.packed_bytes(want.shape)
    return 8 * size / numbers


def measure(path: str, note: str, text: str, context: int, count: int | None, cache: Path | None) -> dict[str, Any]:
    tallies = [Tally(name, bar, load(path, quantization=quantization, cache_dir=cache)) for name, quantization, bar in SCHEMES]
    windows = windows_of(tallies[0].model, text, context=context, windows=count)
    start = time.perf_counter()
    done = 0
    for streams in zip(*(logits_of(tally.model, windows) for tally in tallies), strict=True):
        reference, targets = streams[0]
        for tally, (logits, _) in zip(tallies, streams, strict=True):
            tally.add(reference, logits, targets)
        done += len(targets)
        if done % windows.scored[0] == 0:
            first = np.concatenate(tallies[0].losses)
            print(f"{done / windows.targets:.0%} {time.perf_counter() - start:.0f} s  {tallies[0].name} {math.exp(first.mean()):.3f}  "
                  + "  ".join(f"{t.name} {math.exp((np.concatenate(t.losses) - first).mean()) - 1:+.2%}" for t in tallies[1:]), flush=True)
    rows = [tally.row(windows, tallies[0]) for tally in tallies]
    for row, tally in zip(rows, tallies, strict=True):
        row["bar"] = tally.bar
    return {"model": tallies[0].model.name, "note": note, "windows": len(windows.tokens), "tokens": windows.targets, "rows": rows}


def missed(models: Iterable[dict[str, Any]]) -> list[str]:
    return [f"{row['name']} of {model['model']}: {row['ratio'] - 1:+.2%}" for model in models for row in model["rows"]
            if row["bar"] is not None and row["ratio"] - 1 > row["bar"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL=NOTE")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--cache-dir", type=Path, help="where quantized models are kept between runs; default: Octavo's own place")
    parser.add_argument("--print-only", action="store_true", help="write neither JSON nor docs")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    pairs = [model.partition("=")[::2] for model in args.models]
    models = [measure(path, note, text, args.context, args.windows or None, args.cache_dir) for path, note in pairs]
    if not args.print_only:
        report.save("quality", {**report.circumstances(threads=os.cpu_count()), "text": args.text.name, "context": args.context, "models": models})
        report.write_quality()
    if bad := missed(models):
        raise SystemExit("outside the bar: " + "; ".join(bad))


if __name__ == "__main__":
    main()
