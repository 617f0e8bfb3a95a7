"""The metrics of one service: in the text format of Prometheus for /metrics, and as JSON for the page."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..telemetry import PREFIX, Histogram
from .samples import Sample, samples

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from .service import Service


class Exposition:
    """Renders the metrics of one service."""

    def __init__(self, service: Service) -> None:
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

        self._service = service
        self._registry = CollectorRegistry()
        self._registry.register(self)  # type: ignore[arg-type]
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def render(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """prometheus-client asks this instead of collecting at registration."""
        return ()

    def collect(self) -> Iterable[Metric]:
        return map(_family, samples(self._service))

    def figures(self) -> dict[str, Any]:
        """{"time": seconds, "metrics": {name without prefix: number, or {"labels values, joined": number}, or {"bounds", "counts", "sum"}}}"""
        resident = self._registry.get_sample_value("process_resident_memory_bytes")
        found = {definition.name: _plain(values) for definition, values in samples(self._service)}
        return {"object": "figures", "time": time.time(), "metrics": {**found, "process_resident_memory_bytes": resident}}


def _family(sample: Sample) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily

    definition, values = sample
    name = PREFIX + definition.name
    if isinstance(values, Histogram):
        below, buckets = 0, []
        for bound, count in zip([*values.bounds, math.inf], list(values.counts), strict=True):
            below += count
            buckets.append(("+Inf" if bound == math.inf else repr(float(bound)), below))
        return HistogramMetricFamily(name, definition.help, buckets=buckets, sum_value=values.sum)
    if definition.kind == "info":
        [labels] = values
        return InfoMetricFamily(name, definition.help, value=dict(zip(definition.labels, labels, strict=True)))
    family = (CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily)(name, definition.help, labels=definition.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _plain(values: Any) -> Any:
    """As JSON has it, where NaN and infinity are null."""
    if isinstance(values, Histogram):
        return {"bounds": list(values.bounds), "counts": list(values.counts), "sum": values.sum}
    numbers = {" ".join(labels): value if math.isfinite(value) else None for labels, value in values.items()}
    return numbers[""] if list(numbers) == [""] else numbers
