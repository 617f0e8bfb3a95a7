"""compare(): two models over the same windows of a text, and what can be said of the difference.

Both step through each window side by side, so that their logits meet row by row and are never stored; `recording.py` is for an original
that does not fit beside the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import UsageError
from ..machine import detect
from .divergence import Divergence, Rows
from .intervals import Estimate, estimate, finite
from .perplexity import Model, Windows, logits_of
from .shares import quantile_interval, share

PERCENTILES = (0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
OnRows = Callable[[int, int], None]


class Source(Protocol):
    """What gives the original's logits in the order of `logits_of`: a recording."""

    def replay(self, windows: Windows) -> Iterator[tuple[np.ndarray, np.ndarray]]: ...


@dataclass(frozen=True)
class Comparison:
    """What two models say about the scored tokens of `windows`, one row each."""

    windows: Windows
    rows: Rows

    @property
    def kl(self) -> Estimate:
        """Mean KL(original || model) in nats per token."""
        return estimate(self.rows.kl, self.windows.blocks, positive=True)

    def kl_from(self, position: int) -> Estimate:
        """The same of tokens that have at least so many before them."""
        late = self.windows.positions >= position
        return estimate(self.rows.kl[late], self.windows.blocks[late], positive=True)

    def kl_quantile(self, quantile: float) -> Estimate:
        """A quantile of the tokens' KL, the maximum (1.0) without an interval."""
        interval = (math.nan, math.nan) if quantile == 1.0 else quantile_interval(self.rows.kl, self.windows.blocks, quantile)
        return Estimate(float(np.quantile(self.rows.kl, quantile, method="higher")), *interval)

    @property
    def top1_agreement(self) -> Estimate:
        """Share of tokens at which both would choose the same, 0 to 1. Of two that give the same distributions it is 1, no more and no less."""
        if not self.rows.kl.any():
            return Estimate(1.0, 1.0, 1.0)
        return share(self.rows.same_top.astype(np.float64), self.windows.blocks)

    @property
    def perplexity(self) -> Estimate:
        return estimate(self.rows.model, self.windows.blocks, positive=True).exp

    @property
    def original_perplexity(self) -> Estimate:
        return estimate(self.rows.original, self.windows.blocks, positive=True).exp

    @property
    def perplexity_ratio(self) -> Estimate:
        """The model's perplexity over the original's, from the differences per token: paired, so that the text's difficulty cancels out."""
        with np.errstate(invalid="ignore"):
            return estimate(self.rows.model - self.rows.original, self.windows.blocks).exp

    @property
    def shift(self) -> np.ndarray:
        """How much more probable the model finds the right token, per token: -1 to 1."""
        shift: np.ndarray = np.exp(-self.rows.model) - np.exp(-self.rows.original)
        return shift

    @property
    def broken(self) -> int:
        """Tokens at which the model's logits are no numbers, or rule out what the original holds possible."""
        return int((~np.isfinite(self.rows.kl)).sum())

    def kl_by_position(self, bins: int = 32) -> list[tuple[int, int, Estimate]]:
        """(first position, one after the last, mean KL) by the number of tokens before, in at most `bins` ranges of equal width."""
        positions, context = self.windows.positions, self.windows.tokens.shape[1]
        edges = np.unique(np.linspace(int(positions.min()), context, bins + 1).astype(int))
        found = []
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            inside = (positions >= start) & (positions < stop)
            if inside.any():
                found.append((start, stop, estimate(self.rows.kl[inside], self.windows.blocks[inside], positive=True)))
        return found

    @property
    def kl_by_window(self) -> np.ndarray:
        """Mean KL of each window: float64 [windows]."""
        means: np.ndarray = np.add.reduceat(self.rows.kl, np.concatenate([[0], np.cumsum(self.windows.scored)[:-1]])) / self.windows.scored
        return means

    def to_json(self) -> dict[str, Any]:
        """Numbers with their 95% intervals; null where there is none to give."""
        kl, median, p99 = self.kl, self.kl_quantile(0.5), self.kl_quantile(0.99)
        shift, blocks = self.shift, self.windows.blocks
        square = estimate(shift**2, blocks, positive=True)
        return {
            "perplexity": self.perplexity.to_json(),
            "original_perplexity": self.original_perplexity.to_json(),
            "perplexity_ratio": self.perplexity_ratio.to_json(),
            "kl": {
                "mean": finite(kl.value), "median": finite(median.value), "p99": finite(p99.value), "max": finite(float(self.rows.kl.max())),
                "low": finite(kl.low), "high": finite(kl.high), "median_interval": [finite(median.low), finite(median.high)],
                "p99_interval": [finite(p99.low), finite(p99.high)],
            },
            "top1_agreement": self.top1_agreement.to_json(),
            "probability_shift": {
                "mean": estimate(shift, blocks).to_json(),
                "rms": Estimate(*(math.sqrt(max(x, 0.0)) for x in (square.value, square.low, square.high))).to_json(),
                "percentiles": {f"{p:g}": finite(float(np.percentile(shift, p))) for p in PERCENTILES},
                "min": finite(float(shift.min())), "max": finite(float(shift.max())),
            },
            "broken_tokens": self.broken,
            "tokens": len(self.rows.kl), "windows": len(self.windows.tokens), "context": int(self.windows.tokens.shape[1]),
            "blocks": len(np.unique(blocks)),
        }


def compare(original: Model | Source, model: Model, windows: Windows, *, threads: int | None = None, on_rows: OnRows | None = None) -> Comparison:
    """The model against the original on the same windows; `on_rows(done, total)` is called after every chunk of scored tokens.

    threads: of the comparison itself; None: all cores. Raises UsageError where the two do not have the same vocabulary.
    """
    return compare_all(original, [model], windows, threads=threads, on_rows=on_rows)[0]


def compare_all(original: Model | Source, models: Sequence[Model], windows: Windows, *, threads: int | None = None,
                on_rows: OnRows | None = None) -> list[Comparison]:
    """Several models against one original, whose forwards are computed once."""
    streams = [logits_of(model, windows) for model in models]
    found: list[list[Rows]] = [[] for _ in models]
    done = 0
    with Divergence(threads or detect(None).cores) as divergence:
        for truth, targets in original_logits(original, windows):
            if any(model is original for model in models):
                truth = truth.copy()  # the forward of the other would write into it
            for rows, stream in zip(found, streams, strict=True):
                logits, _ = next(stream)
                if logits.shape != truth.shape:
                    raise UsageError(f"the original has {truth.shape[1]} tokens in its vocabulary, the model {logits.shape[1]}",
                                     remedy="compare a model with the one that it was made of")
                rows.append(divergence(truth, logits, targets))
            done += len(targets)
            if on_rows is not None:
                on_rows(done, windows.targets)
    return [Comparison(windows, Rows.joined(rows)) for rows in found]


def original_logits(original: Model | Source, windows: Windows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    replay = getattr(original, "replay", None)
    return replay(windows) if replay is not None else logits_of(original, windows)  # type: ignore[arg-type]
