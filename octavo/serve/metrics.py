"""/metrics: the engine's telemetry and the HTTP requests in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..telemetry import Counter, EngineTelemetry, Gauge, Histogram

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from ..engine import Engine
    from ..loading import LoadedModel
    from .quality import Quality
    from .service import Service


class HttpTelemetry:
    """Written by the event loop only."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}   # (route, status) -> how many
        self.seconds = Histogram("http_request_seconds", "Time of an HTTP request until its last byte")
        self.open = 0

    def count(self, route: str, status: int, seconds: float) -> None:
        self.requests[route, status] = self.requests.get((route, status), 0) + 1
        self.seconds.observe(seconds)


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
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        service = self._service
        requests = CounterMetricFamily("octavo_http_requests", "HTTP requests, by route and status", labels=("route", "status"))
        for (route, status), count in list(service.http.requests.items()):
            requests.add_metric((route, str(status)), count)
        yield requests
        yield GaugeMetricFamily("octavo_http_open_requests", "HTTP requests that are being answered", service.http.open)
        yield _histogram(service.http.seconds)
        yield GaugeMetricFamily("octavo_ready", "1 when requests are taken", float(service.state.value == "ready"))
        if service.engine is not None and service.loaded is not None:
            yield _info(service.loaded, service.engine, service.options.names[0])
            yield _weights(service.loaded)
            yield from _quality(service.quality)
            yield from _engine(service.engine.telemetry)


def _engine(telemetry: EngineTelemetry) -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for metric in telemetry.metrics():
        if isinstance(metric, Histogram):
            yield _histogram(metric)
        elif isinstance(metric, Gauge):
            yield GaugeMetricFamily(f"octavo_{metric.name}", metric.help, metric.value)
        elif isinstance(metric, Counter):
            family = CounterMetricFamily(f"octavo_{metric.name}", metric.help, labels=(metric.label,) if metric.label else ())
            for label, value in list(metric.values.items()) or ([] if metric.label else [("", 0.0)]):
                family.add_metric((label,) if metric.label else (), value)
            yield family


def _histogram(metric: Histogram) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    below, buckets = 0, []
    for bound, count in zip([*metric.bounds, float("inf")], list(metric.counts), strict=True):
        below += count
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), below))
    return HistogramMetricFamily(f"octavo_{metric.name}", metric.help, buckets=buckets, sum_value=metric.sum)


def _weights(loaded: LoadedModel) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily("octavo_weight_bytes", "Bytes of weights in memory, by the precision asked for and what really runs",
                               labels=("asked", "runs_as", "kernel"))
    for one in loaded.report.runs:
        family.add_metric((f"W{one.asked}", one.runs_as, one.kernel), one.bytes)
    return family


def _quality(quality: Quality) -> Iterable[Metric]:
    """The receipt's numbers; none of them before they are known."""
    from prometheus_client.core import GaugeMetricFamily

    receipt = quality.receipt
    yield GaugeMetricFamily("octavo_quality_known", "1 when it is known what the model has lost (see /v1/quality)",
                            float(receipt is not None and receipt.status != "not measured"))
    if receipt is None or receipt.status != "measured":
        return
    parts = {"kl": {**receipt.loss["kl"], "value": receipt.loss["kl"]["mean"]}, "top1_agreement": receipt.loss["top1_agreement"],
             "perplexity_ratio": receipt.loss["perplexity_ratio"]}
    helps = {"kl": "Mean KL divergence from the original in nats per token", "top1_agreement": "Share of tokens with the original's first choice",
             "perplexity_ratio": "Perplexity over the original's"}
    for name, numbers in parts.items():
        family = GaugeMetricFamily(f"octavo_quality_{name}", f"{helps[name]}, with its 95% interval", labels=("bound",))
        for bound in ("value", "low", "high"):
            family.add_metric((bound,), float("nan") if numbers[bound] is None else numbers[bound])
        yield family


def _info(loaded: LoadedModel, engine: Engine, name: str) -> Metric:
    from prometheus_client.core import InfoMetricFamily

    facts = {
        "model": name, "scheme": str(loaded.plan.default), "plan": loaded.plan.short, "cache": loaded.cache_spec.format,
        "max_model_len": str(engine.max_model_len), "version": __version__,
    }
    return InfoMetricFamily("octavo_model", "What is served, and in which precision", value=facts)
