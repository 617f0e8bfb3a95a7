"""Counters, gauges and histograms: the engine writes them, the server exposes them.

Plain Python with no dependency: writing one is a dictionary update, cheap enough for every step. Each metric has one writer thread;
readers may see a value that is one step old, never a torn one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass
class Counter:
    """A number that only grows, one value for each value of its label (`label` empty: one value, under "")."""

    name: str
    help: str
    label: str = ""
    values: dict[str, float] = field(default_factory=dict)

    def add(self, amount: float = 1, label: str = "") -> None:
        self.values[label] = self.values.get(label, 0) + amount

    @property
    def total(self) -> float:
        return sum(self.values.values())


@dataclass
class Gauge:
    """A number as it is now."""

    name: str
    help: str
    value: float = 0

    def set(self, value: float) -> None:
        self.value = value


@dataclass
class Histogram:
    """How often a value fell into each bucket: counts[i] values were <= bounds[i] and above the bound before; the last one is the rest."""

    name: str
    help: str
    bounds: Sequence[float] = SECONDS
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0


Metric = Counter | Gauge | Histogram


@dataclass
class EngineTelemetry:
    """Everything the engine counts. Names carry no prefix; the server adds `octavo_`."""

    requests: Counter = field(default_factory=lambda: Counter("requests", "Choices that ended, by reason", "finish"))
    refused: Counter = field(default_factory=lambda: Counter("requests_refused", "Requests refused at submission, by reason", "reason"))
    prompt_tokens: Counter = field(default_factory=lambda: Counter("prompt_tokens", "Prompt tokens of admitted requests"))
    cached_tokens: Counter = field(default_factory=lambda: Counter("cached_tokens", "Prompt tokens found in the prefix cache"))
    generated_tokens: Counter = field(default_factory=lambda: Counter("generated_tokens", "Tokens generated"))
    preemptions: Counter = field(default_factory=lambda: Counter("preemptions", "Sequences set back because the pages ran out"))
    cancellations: Counter = field(default_factory=lambda: Counter("cancellations", "Choices cancelled by their client"))
    nan_failures: Counter = field(default_factory=lambda: Counter("nan_failures", "Choices ended because their logits were not finite"))
    step_failures: Counter = field(default_factory=lambda: Counter("step_failures", "Forward passes that raised"))
    steps: Counter = field(default_factory=lambda: Counter("steps", "Forward passes"))
    queued: Gauge = field(default_factory=lambda: Gauge("queued", "Choices that wait for admission"))
    running: Gauge = field(default_factory=lambda: Gauge("running", "Choices that are being computed"))
    pages_total: Gauge = field(default_factory=lambda: Gauge("pages_total", "Pages of the key-value cache"))
    pages_used: Gauge = field(default_factory=lambda: Gauge("pages_used", "Pages held by running choices"))
    pages_cached: Gauge = field(default_factory=lambda: Gauge("pages_cached", "Free pages that still hold a reusable prefix"))
    pages_free: Gauge = field(default_factory=lambda: Gauge("pages_free", "Free pages that hold nothing"))
    step_seconds: Histogram = field(default_factory=lambda: Histogram("step_seconds", "Time of one step: plan, forward, sample"))
    forward_seconds: Histogram = field(default_factory=lambda: Histogram("forward_seconds", "Time of the forward pass alone"))
    first_token_seconds: Histogram = field(default_factory=lambda: Histogram("first_token_seconds", "Submission to first token"))
    token_gap_seconds: Histogram = field(default_factory=lambda: Histogram("token_gap_seconds", "Time between two tokens of a choice"))
    request_seconds: Histogram = field(default_factory=lambda: Histogram("request_seconds", "Submission to the end of a choice"))
    batch_size: Histogram = field(default_factory=lambda: Histogram("batch_size", "Sequences in a step", COUNTS))

    def metrics(self) -> list[Metric]:
        """All metrics in the order declared above."""
        return list(vars(self).values())
