"""What every metric of the table says just now: gathered in one place for `/metrics` and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .. import __version__
from ..machine import available_memory
from ..telemetry import DEFINITIONS, Counter, Definition, Gauge, Histogram
from ..telemetry import Value as Metric

if TYPE_CHECKING:
    from ..engine import Engine
    from ..loading import LoadedModel
    from .quality import Quality
    from .service import Service

Values = Mapping[tuple[str, ...], float] | Histogram  # values of the labels, in the order of the definition -> number
Sample = tuple[Definition, Values]


class HttpTelemetry:
    """Written by the event loop only."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}   # (route, status) -> how many
        self.seconds = Histogram(DEFINITIONS["http_request_duration_seconds"])
        self.open = 0

    def count(self, route: str, status: int, seconds: float) -> None:
        self.requests[route, status] = self.requests.get((route, status), 0) + 1
        self.seconds.observe(seconds)


def samples(service: Service) -> Iterator[Sample]:
    """All that is known; while the model loads, what HTTP does."""
    http = service.http
    yield DEFINITIONS["http_requests"], {(route, str(status)): count for (route, status), count in http.requests.items()}
    yield _one("http_requests_in_progress", http.open)
    yield http.seconds.definition, http.seconds
    yield _one("ready", float(service.state.value == "ready"))
    yield _one("memory_available_bytes", available_memory())
    if service.engine is not None and service.loaded is not None:
        yield from _model(service.loaded, service.engine, service.options.names[0])
        yield from _quality(service.quality)
        for metric in (*service.engine.telemetry.metrics(), *service.quality.drift.metrics()):
            yield sample_of(metric)


def sample_of(metric: Metric) -> Sample:
    if isinstance(metric, Histogram):
        return metric.definition, metric
    if isinstance(metric, Gauge):
        return metric.definition, {(): metric.value}
    assert isinstance(metric, Counter)
    if not metric.definition.labels:
        return metric.definition, {(): metric.total}
    values = {**dict.fromkeys(metric.definition.known, 0.0), **metric.values}
    return metric.definition, {(label,): value for label, value in values.items()}


def bounds(name: str, value: float, low: float, high: float) -> Sample:
    """A number with its interval."""
    return DEFINITIONS[name], {("value",): value, ("low",): low, ("high",): high}


def _one(name: str, value: float) -> Sample:
    return DEFINITIONS[name], {(): value}


def _model(loaded: LoadedModel, engine: Engine, name: str) -> Iterator[Sample]:
    yield DEFINITIONS["model"], {(name, str(loaded.plan.default), loaded.plan.short, loaded.cache_spec.format, str(engine.max_model_len), __version__): 1}
    backend = getattr(loaded, "backend", None)
    policy = getattr(loaded.report, "policy", "") or "defaults"
    yield DEFINITIONS["kernel_policy"], {(policy, *(str(getattr(backend, fact, "")) for fact in ("name", "isa", "threads"))): 1}
    weights: dict[tuple[str, ...], float] = {}
    for one in loaded.report.runs:
        key = (f"W{one.asked}", one.runs_as, one.kernel)
        weights[key] = weights.get(key, 0) + one.bytes
    yield DEFINITIONS["weight_bytes"], weights
    yield _one("kv_cache_bytes", engine.kv_bytes)


def _quality(quality: Quality) -> Iterator[Sample]:
    """The receipt's numbers; none of them before they are known."""
    receipt = quality.receipt
    if (recent := quality.drift.kl) is not None:
        yield bounds("shadow_kl", *recent)
    if (ratio := quality.drift.ratio(receipt.kl if receipt is not None and receipt.status != "not measured" else None)) is not None:
        yield _one("quality_drift_ratio", ratio)
    yield _one("quality_known", float(receipt is not None and receipt.status != "not measured"))
    if receipt is None or receipt.status != "measured":
        return
    kl = receipt.loss["kl"]
    parts = {"kl": {**kl, "value": kl["mean"]}, "top1_agreement": receipt.loss["top1_agreement"], "perplexity_ratio": receipt.loss["perplexity_ratio"]}
    for name, numbers in parts.items():
        value, low, high = (float("nan") if numbers[bound] is None else numbers[bound] for bound in ("value", "low", "high"))
        yield bounds(f"quality_{name}", value, low, high)
