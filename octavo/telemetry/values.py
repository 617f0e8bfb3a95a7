"""Counters, gauges and histograms: the engine writes them, the server exposes them.

Plain Python with no dependency: writing one is a dictionary update, cheap enough for every step. Each metric has one writer thread;
readers may see a value that is one step old, never a torn one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from .definitions import DEFINITIONS, Definition


@dataclass
class Counter:
    """A number that only grows, one value for each value of its label (no label: one value, under "")."""

    definition: Definition
    values: dict[str, float] = field(default_factory=dict)

    def add(self, amount: float = 1, label: str = "") -> None:
        self.values[label] = self.values.get(label, 0) + amount

    @property
    def total(self) -> float:
        return sum(self.values.values())


@dataclass
class Gauge:
    """A number as it is now."""

    definition: Definition
    value: float = 0

    def set(self, value: float) -> None:
        self.value = value


class Histogram:
    """How often a value fell into each bucket: counts[i] values were <= bounds[i] and above the bound before; the last one is the rest."""

    def __init__(self, definition: Definition) -> None:
        self.definition, self.bounds = definition, definition.bounds
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0


Value = Counter | Gauge | Histogram


def counter(name: str) -> Callable[[], Counter]:
    """For a dataclass field: makes the Counter of this name."""
    return lambda: Counter(DEFINITIONS[name])


def gauge(name: str) -> Callable[[], Gauge]:
    return lambda: Gauge(DEFINITIONS[name])


def histogram(name: str) -> Callable[[], Histogram]:
    return lambda: Histogram(DEFINITIONS[name])


@dataclass
class EngineTelemetry:
    """Everything the engine counts; what each means stands in the table of definitions."""

    requests: Counter = field(default_factory=counter("requests_finished"))
    errors: Counter = field(default_factory=counter("request_errors"))
    prompt_tokens: Counter = field(default_factory=counter("prompt_tokens"))
    looked_up_tokens: Counter = field(default_factory=counter("prefix_cache_queries"))
    cached_tokens: Counter = field(default_factory=counter("prefix_cache_hits"))
    generated_tokens: Counter = field(default_factory=counter("generation_tokens"))
    preemptions: Counter = field(default_factory=counter("num_preemptions"))
    cancellations: Counter = field(default_factory=counter("cancellations"))
    nan_failures: Counter = field(default_factory=counter("nan_failures"))
    step_failures: Counter = field(default_factory=counter("step_failures"))
    steps: Counter = field(default_factory=counter("steps"))
    queued: Gauge = field(default_factory=gauge("num_requests_waiting"))
    running: Gauge = field(default_factory=gauge("num_requests_running"))
    cache_usage: Gauge = field(default_factory=gauge("kv_cache_usage_perc"))
    pages_total: Gauge = field(default_factory=gauge("pages"))
    pages_used: Gauge = field(default_factory=gauge("pages_used"))
    pages_cached: Gauge = field(default_factory=gauge("pages_cached"))
    pages_free: Gauge = field(default_factory=gauge("pages_free"))
    step_seconds: Histogram = field(default_factory=histogram("step_seconds"))
    forward_seconds: Histogram = field(default_factory=histogram("forward_seconds"))
    first_token_seconds: Histogram = field(default_factory=histogram("time_to_first_token_seconds"))
    token_gap_seconds: Histogram = field(default_factory=histogram("inter_token_latency_seconds"))
    request_seconds: Histogram = field(default_factory=histogram("e2e_request_latency_seconds"))
    queue_seconds: Histogram = field(default_factory=histogram("request_queue_time_seconds"))
    prefill_seconds: Histogram = field(default_factory=histogram("request_prefill_time_seconds"))
    decode_seconds: Histogram = field(default_factory=histogram("request_decode_time_seconds"))
    prompt_length: Histogram = field(default_factory=histogram("request_prompt_tokens"))
    answer_length: Histogram = field(default_factory=histogram("request_generation_tokens"))
    batch_size: Histogram = field(default_factory=histogram("batch_size"))

    def metrics(self) -> list[Value]:
        """All of them in the order declared above."""
        return list(vars(self).values())
