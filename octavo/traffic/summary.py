"""Summary: what a recording says, as numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arrivals import Closed
from .drive import Recording
from .percentiles import Spread, corrected, spread
from .sample import Sample
from .service_level import ServiceLevel


@dataclass(frozen=True)
class Summary:
    """Times in seconds. Latencies are those of requests that count and were answered; rates are of all that came within the measured time."""

    seconds: float
    requests: int
    """Requests that count, failed ones included."""
    errors: dict[str, int]
    """Kind of failure -> how many of them."""
    error_examples: dict[str, str]
    latency: Spread
    """From due to the end of the answer."""
    latency_corrected: Spread | None
    """The same with what a closed loop hides (see percentiles.corrected); None of an open loop, which hides nothing."""
    ttft: Spread
    """Time to first token: from due to the first text."""
    itl: Spread
    """Inter-token latency: between two pieces of text, all requests together."""
    tpot: Spread
    """Time per output token after the first: a mean for each request."""
    requests_per_s: float
    tokens_per_s: float
    """Tokens of answers, as the server's usage counts them."""
    chunks_per_s: float
    """Pieces of text, as they were counted here: fewer than tokens where a server sends several in one piece."""
    prompt_tokens_per_s: float
    """Tokens of the prompts whose answers began."""
    prompt_tokens: float
    answer_tokens: float
    """Mean of a request."""
    cached_share: float
    """Share of the prompts' tokens that the server had in its prefix cache."""
    goodput: float | None
    """Requests a second that kept the service level; None without one."""
    good_share: float | None
    """Share of all requests that count, failures included, that kept it."""
    running: float
    """Requests under way, on average (Little's law: rate times latency, measured directly)."""
    late_p99: float
    """Seconds by which this client's own event loop was late, 99th percentile: times are no more exact than that."""
    client_share: float
    """Processor time of this client, as a share of one core."""
    timeline: dict[str, list[float]] = field(default_factory=dict)
    """By slices of the measured time: "at" (seconds from its start), "tokens_per_s", "running", "latency" (median of those that ended)."""

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def to_json(self) -> dict[str, Any]:
        return {name: value.to_json() if isinstance(value, Spread) else value for name, value in vars(self).items()}


def summarize(recording: Recording, level: ServiceLevel | None = None) -> Summary:
    """Numbers of a recording. `level`: what a request must keep to count for goodput."""
    counted, seconds = recording.counted, max(recording.seconds, 1e-9)
    good = [s for s in counted if s.good]
    latency = np.array([s.latency for s in good])
    arrivals = recording.load.arrivals
    closed = isinstance(arrivals, Closed)
    interval = float(np.median(latency)) + arrivals.think if isinstance(arrivals, Closed) and good else 0.0
    tokens, chunks = _within(recording)
    kept = sum(level.kept(s) for s in good) if level is not None else 0
    prompt = sum(s.prompt_tokens for s in good)
    began = [s for s in recording.samples if recording.began <= s.first < recording.ended]
    ended = [s for s in recording.samples if s.good and recording.began <= s.end <= recording.ended]
    return Summary(
        seconds=seconds, requests=len(counted), errors=dict(Counter(s.error for s in counted if s.error).most_common()),
        error_examples={s.error: s.detail for s in reversed(counted) if s.error},
        latency=spread(latency), latency_corrected=spread(corrected(latency, interval)) if closed else None,
        ttft=spread(np.array([s.ttft for s in good])), itl=spread(_gaps(good)), tpot=spread(np.array([s.tpot for s in good])),
        requests_per_s=len(ended) / seconds, tokens_per_s=tokens / seconds, chunks_per_s=chunks / seconds,
        prompt_tokens_per_s=sum(s.prompt_tokens for s in began) / seconds,
        prompt_tokens=prompt / max(len(good), 1), answer_tokens=sum(s.tokens for s in good) / max(len(good), 1),
        cached_share=sum(s.cached_tokens for s in good) / max(prompt, 1),
        goodput=kept / seconds if level is not None else None, good_share=kept / max(len(counted), 1) if level is not None else None,
        running=sum(_overlap(s, recording) for s in recording.samples) / seconds,
        late_p99=float(np.quantile(recording.late, 0.99)) if recording.late else 0.0, client_share=recording.cpu_seconds / seconds,
        timeline=_timeline(recording),
    )


def _gaps(samples: list[Sample]) -> np.ndarray:
    return np.concatenate([np.frombuffer(s.gaps, np.float32) for s in samples if s.gaps] or [np.zeros(0, np.float32)])


def _arrivals(sample: Sample) -> np.ndarray:
    """When its pieces of text came; of tokens that made no text, when they ended. A failed request may have a NaN, which is never within anything."""
    return sample.first + np.concatenate([[0.0], np.cumsum(np.frombuffer(sample.gaps, np.float32), dtype=np.float64)])


def _within(recording: Recording) -> tuple[float, float]:
    """Tokens and pieces of text that came within the measured time; a request's tokens are spread evenly over its pieces."""
    tokens = chunks = 0.0
    for sample in recording.samples:
        came = _arrivals(sample)
        here = int(((came >= recording.began) & (came <= recording.ended)).sum())
        chunks += here if sample.chunks else 0
        tokens += here * (sample.tokens or sample.chunks) / len(came)
    return tokens, chunks


def _overlap(sample: Sample, recording: Recording) -> float:
    """Seconds of the measured time in which it was under way."""
    end = sample.end if sample.end == sample.end else recording.ended
    return max(0.0, min(end, recording.ended) - max(sample.due, recording.began))


def _timeline(recording: Recording, slices: int = 60) -> dict[str, list[float]]:
    edges = np.linspace(recording.began, max(recording.ended, recording.began + 1e-9), slices + 1)
    width = float(edges[1] - edges[0])
    tokens, running = np.zeros(slices), np.zeros(slices)
    waits: list[list[float]] = [[] for _ in range(slices)]
    for sample in recording.samples:
        came = _arrivals(sample)
        counts, _ = np.histogram(came[np.isfinite(came)], edges)
        tokens += counts * ((sample.tokens or sample.chunks) / len(came))
        end = sample.end if sample.end == sample.end else recording.ended
        running += np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], sample.due), 0, width)
        place = int((end - recording.began) / width) if sample.good else -1
        if 0 <= place < slices:
            waits[place].append(sample.latency)
    return {
        "at": [round(float(e - recording.began), 4) for e in edges[:-1]], "tokens_per_s": [round(float(t), 3) for t in tokens / width],
        "running": [round(float(r), 3) for r in running / width], "latency": [round(float(np.median(w)), 5) if w else 0.0 for w in waits],
    }
