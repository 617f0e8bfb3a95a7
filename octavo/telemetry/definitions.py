"""Every metric, once: name, kind, unit, meaning, labels, buckets. `/metrics`, the page's figures, the alert rules and the dashboard are made from this table.

Names follow vLLM's where it has the metric (time_to_first_token_seconds, num_requests_running, kv_cache_usage_perc ...), so that dashboards need little
change, with `octavo_` before them; units are Prometheus' base units. A metric that is added here needs someone who writes it (tests/serve/test_metrics.py
looks for it at /metrics) and has its panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "octavo_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LENGTHS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
BOUND = ("bound",)  # value, low, high: a number and its 95% interval

Kind = Literal["counter", "gauge", "histogram", "info"]
Group = Literal["Latency", "Load", "Tokens", "Cache", "Errors", "Quality", "HTTP", "Steps", "Memory", "What runs"]


@dataclass(frozen=True)
class Definition:
    """name: without prefix, and without the `_total` and `_info` that the exposition adds. unit: seconds, bytes, tokens, nats, ratio (of 1) or nothing.
    bounds: upper bounds of a histogram's buckets. known: values of the only label that are exposed as 0 before they occur: a rate misses the first of what
    came out of nothing."""

    name: str
    kind: Kind
    group: Group
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    known: tuple[str, ...] = ()

    @property
    def exposed(self) -> str:
        """The name of its samples at /metrics, of a histogram without _bucket, _sum and _count."""
        return PREFIX + self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


_TABLE = (
    Definition("time_to_first_token_seconds", "histogram", "Latency", "seconds", "Submission to first token", bounds=SECONDS),
    Definition("inter_token_latency_seconds", "histogram", "Latency", "seconds", "Time between two tokens of a choice", bounds=SECONDS),
    Definition("e2e_request_latency_seconds", "histogram", "Latency", "seconds", "Submission to the end of a choice", bounds=SECONDS),
    Definition("request_queue_time_seconds", "histogram", "Latency", "seconds", "Submission to admission", bounds=SECONDS),
    Definition("request_prefill_time_seconds", "histogram", "Latency", "seconds", "Admission to first token", bounds=SECONDS),
    Definition("request_decode_time_seconds", "histogram", "Latency", "seconds", "First token to last token", bounds=SECONDS),

    Definition("num_requests_running", "gauge", "Load", "", "Choices that are being computed"),
    Definition("num_requests_waiting", "gauge", "Load", "", "Choices that wait for admission"),
    Definition("requests_finished", "counter", "Load", "", "Choices that ended, by reason", ("finished_reason",),
               known=("stop", "length", "cancelled", "timeout", "error")),
    Definition("num_preemptions", "counter", "Load", "", "Sequences set back because the pages ran out"),
    Definition("cancellations", "counter", "Load", "", "Choices cancelled by their client"),

    Definition("prompt_tokens", "counter", "Tokens", "tokens", "Prompt tokens of admitted requests"),
    Definition("generation_tokens", "counter", "Tokens", "tokens", "Tokens generated"),
    Definition("request_prompt_tokens", "histogram", "Tokens", "tokens", "Prompt tokens of a choice", bounds=LENGTHS),
    Definition("request_generation_tokens", "histogram", "Tokens", "tokens", "Tokens generated for a choice", bounds=LENGTHS),

    Definition("kv_cache_usage_perc", "gauge", "Cache", "ratio", "Share of the key-value cache held by running choices; 1 is all of it"),
    Definition("prefix_cache_queries", "counter", "Cache", "tokens", "Prompt tokens looked up in the prefix cache"),
    Definition("prefix_cache_hits", "counter", "Cache", "tokens", "Prompt tokens found in the prefix cache"),
    Definition("pages", "gauge", "Cache", "", "Pages of the key-value cache"),
    Definition("pages_used", "gauge", "Cache", "", "Pages held by running choices"),
    Definition("pages_cached", "gauge", "Cache", "", "Free pages that still hold a reusable prefix"),
    Definition("pages_free", "gauge", "Cache", "", "Free pages that hold nothing"),

    Definition("request_errors", "counter", "Errors", "", "Requests refused and choices that failed, by kind", ("kind",),
               known=("invalid", "too_long", "queue_full", "stopping", "nan", "step_failed", "timeout", "grammar")),
    Definition("nan_failures", "counter", "Errors", "", "Choices ended because their logits were not finite"),
    Definition("step_failures", "counter", "Errors", "", "Forward passes that raised"),

    Definition("quality_known", "gauge", "Quality", "", "1 when it is known what the model has lost (see /v1/quality)"),
    Definition("quality_kl", "gauge", "Quality", "nats", "The receipt's mean KL divergence from the original in nats per token, with its 95% interval", BOUND),
    Definition("quality_top1_agreement", "gauge", "Quality", "ratio", "The receipt's share of tokens with the original's first choice, with its 95% interval",
               BOUND),
    Definition("quality_perplexity_ratio", "gauge", "Quality", "", "The receipt's perplexity over the original's, with its 95% interval", BOUND),
    Definition("quality_drift_ratio", "gauge", "Quality", "", "KL divergence of the requests scored last over the receipt's"),
    Definition("shadow_kl", "gauge", "Quality", "nats", "KL divergence from the original on the requests scored last, in nats per token",
               BOUND),
    Definition("shadow_requests", "counter", "Quality", "", "Sampled requests, by what became of them; dropped: no time for them", ("outcome",),
               known=("scored", "dropped", "failed")),
    Definition("shadow_tokens", "counter", "Quality", "tokens", "Tokens scored by served and original weights"),
    Definition("shadow_kl_nats", "counter", "Quality", "nats", "Sum of the KL divergence of scored tokens; over shadow_tokens it is their mean"),
    Definition("shadow_loss_nats", "counter", "Quality", "nats", "Sum of what scored answers cost, in nats, by the weights that judge them", ("weights",),
               known=("served", "original")),
    Definition("shadow_cpu_seconds", "counter", "Quality", "seconds", "Processor time of shadow checking"),

    Definition("ready", "gauge", "HTTP", "", "1 when requests are taken"),
    Definition("http_requests", "counter", "HTTP", "", "HTTP requests, by route and status", ("route", "status")),
    Definition("http_requests_in_progress", "gauge", "HTTP", "", "HTTP requests that are being answered"),
    Definition("http_request_duration_seconds", "histogram", "HTTP", "seconds", "Time of an HTTP request until its last byte", bounds=SECONDS),

    Definition("batch_size", "histogram", "Steps", "", "Sequences in a step", bounds=COUNTS),
    Definition("steps", "counter", "Steps", "", "Forward passes"),
    Definition("step_seconds", "histogram", "Steps", "seconds", "Time of one step: plan, forward, sample", bounds=SECONDS),
    Definition("forward_seconds", "histogram", "Steps", "seconds", "Time of the forward pass alone", bounds=SECONDS),

    Definition("weight_bytes", "gauge", "Memory", "bytes", "Weights in memory, by precision asked for and what really runs", ("asked", "runs_as", "kernel")),
    Definition("kv_cache_bytes", "gauge", "Memory", "bytes", "What the key-value cache takes when all its pages are used"),
    Definition("memory_available_bytes", "gauge", "Memory", "bytes", "Memory that is free for this process, container limits respected"),

    Definition("model", "info", "What runs", "", "What is served, and in which precision",
               ("model", "scheme", "plan", "cache", "max_model_len", "version")),
    Definition("kernel_policy", "info", "What runs", "", "The measured policy in use, or the defaults", ("policy", "backend", "isa", "threads")),
)

DEFINITIONS: dict[str, Definition] = {one.name: one for one in _TABLE}
