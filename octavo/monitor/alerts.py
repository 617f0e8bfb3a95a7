"""What is worth waking somebody for, and what is worth precomputing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from .queries import increase, metric, quantile, rate, ratio


@dataclass(frozen=True)
class Limits:
    """first_token, token_gap, queue: seconds at the 95th percentile. errors: share of what ended. drift: KL over the receipt's. job: in Prometheus."""

    first_token: float = 2.0
    token_gap: float = 0.25
    queue: float = 5.0
    errors: float = 0.01
    drift: float = 3.0
    job: str = "octavo"

    def __post_init__(self) -> None:
        for name in ("first_token", "token_gap", "queue", "errors", "drift"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"must be above 0, not {getattr(self, name)}", where=name)
        if not self.job or any(sign in self.job for sign in '"\\\n'):
            raise UsageError(f"{self.job!r} is no name of a job", where="job")


@dataclass(frozen=True)
class Alert:
    """condition(limits) is PromQL; `lasts` how long it must hold. summary and action are sentences; {{ $labels.instance }} is filled in by Prometheus."""

    name: str
    severity: Literal["critical", "warning", "info"]
    lasts: str
    condition: Callable[[Limits], str]
    summary: str
    action: str


@dataclass(frozen=True)
class Record:
    name: str
    expression: str
    help: str
    unit: str


RECORDS = (
    Record("octavo:prefix_cache_hit_ratio:rate5m", ratio(rate("prefix_cache_hits"), rate("prefix_cache_queries")),
           "Share of prompt tokens that the prefix cache had", "ratio"),
    Record("octavo:request_error_ratio:rate5m", ratio(rate("request_errors", kind="~nan|step_failed|timeout|grammar"), rate("requests_finished")),
           "Share of choices that ended because something failed", "ratio"),
    Record("octavo:time_to_first_token_seconds:p95_5m", quantile("time_to_first_token_seconds", 0.95), "Time to first token, 95th percentile", "seconds"),
    Record("octavo:shadow_kl_nats:mean1h", ratio(rate("shadow_kl_nats", window="1h"), rate("shadow_tokens", window="1h")),
           "KL divergence from the original over an hour, in nats per token", "nats"),
)

ALERTS = (
    Alert("OctavoDown", "critical", "2m", lambda at: f'up{{job="{at.job}"}} == 0', "{{ $labels.instance }} does not answer Prometheus",
          "Look whether the process runs; `octavo serve` says on standard error why it ended."),
    Alert("OctavoNotReady", "critical", "10m", lambda _: f"{metric('ready')} == 0", "{{ $labels.instance }} takes no requests",
          "It is still loading, or it is stopping; see GET /health and the log."),
    Alert("OctavoSlowFirstToken", "warning", "10m", lambda at: f"{quantile('time_to_first_token_seconds', 0.95)} > {at.first_token:g}",
          "First tokens take {{ $value | humanizeDuration }} at the 95th percentile",
          "Compare queue and prefill time: a long queue wants another server or fewer users, a long prefill shorter prompts or a larger --max-batch-tokens."),
    Alert("OctavoSlowTokens", "warning", "10m", lambda at: f"{quantile('inter_token_latency_seconds', 0.95)} > {at.token_gap:g}",
          "Tokens come {{ $value | humanizeDuration }} apart at the 95th percentile", "Lower --max-batch or --max-batch-tokens, or add a server."),
    Alert("OctavoLongQueue", "warning", "10m", lambda at: f"{quantile('request_queue_time_seconds', 0.95)} > {at.queue:g}",
          "Requests wait {{ $value | humanizeDuration }} at the 95th percentile", "More users come than this server carries: add one, or lower --max-queue."),
    Alert("OctavoRefusing", "warning", "5m", lambda _: f"{rate('request_errors', kind='queue_full')} > 0", "Requests are refused because the queue is full",
          "Add a server, or raise --max-queue if waiting is better than a refusal."),
    Alert("OctavoErrors", "critical", "5m", lambda at: f"octavo:request_error_ratio:rate5m > {at.errors:g}",
          "{{ $value | humanizePercentage }} of the choices fail", "The label kind of octavo_request_errors_total says how; the log says why."),
    Alert("OctavoNaN", "critical", "0m", lambda _: f"{increase('nan_failures', window='10m')} > 0", "The model's output was not a number",
          "Take the server out; `octavo doctor checkpoint` examines the files, --quantization 16bit shows whether quantizing did it."),
    Alert("OctavoStepsFail", "critical", "0m", lambda _: f"{increase('step_failures', window='10m')} > 0", "Forward passes raise errors",
          "The log has the traceback; restart the server if it goes on."),
    Alert("OctavoHTTPErrors", "warning", "5m", lambda at: f"{ratio(rate('http_requests', status='~5..'), rate('http_requests'))} > {at.errors:g}",
          "{{ $value | humanizePercentage }} of the HTTP requests get a status of 500 or above", "octavo_http_requests_total says on which route."),
    Alert("OctavoCacheFull", "warning", "10m", lambda _: f"{metric('kv_cache_usage_perc')} > 0.95", "The key-value cache is full",
          "Raise --kv-memory-mb, use an 8-bit cache (--kv-cache int8), or lower --max-batch."),
    Alert("OctavoPreempting", "warning", "10m", lambda _: f"{ratio(rate('num_preemptions'), rate('requests_finished'))} > 0.1",
          "More than a tenth of the requests are set back and computed again", "Raise --kv-memory-mb, use an 8-bit cache, or lower --max-batch."),
    Alert("OctavoMemoryLow", "warning", "10m",
          lambda _: f"{metric('kv_cache_bytes')} * {metric('pages_free')} / {metric('pages')} > {metric('memory_available_bytes')}",
          "The key-value cache may still grow by more than the memory that is free", "Lower --kv-memory-mb, or see what else takes the memory."),
    Alert("OctavoQualityDrift", "critical", "10m", lambda at: f"{metric('quality_drift_ratio')} > {at.drift:g}",
          "On live requests the model loses {{ $value | humanize }} times what its receipt says",
          "If it began at once, restart the server (damaged memory) and check the files with --max-kl; if slowly, the traffic has changed."),
    Alert("OctavoQualityUnwatched", "info", "1h",
          lambda _: f"{increase('shadow_requests', window='6h', outcome='~dropped|failed')} > 0 unless "
                    f"{increase('shadow_requests', window='6h', outcome='scored')} > 0",
          "No sampled request was scored for six hours", "The server is never idle enough, or scoring fails (see the log): raise --shadow-budget."),
    Alert("OctavoQualityUnknown", "info", "1h", lambda _: f"{metric('quality_known')} == 0", "What quantizing lost is not known",
          "GET /v1/quality says why; name the original with --against."),
)
