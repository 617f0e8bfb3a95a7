"""Drift: what the requests scored last say of the model's loss, and how that compares with its receipt."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from ..telemetry import DEFINITIONS, Counter

REQUESTS = 10   # the last so many make up the gauges; the counters make any other window in PromQL
ENOUGH = 3      # requests before the gauges say anything
MOST = 50.0     # nats: a token without numbers counts as this, so that sums stay numbers
LEAST = 1e-4    # nats per token: below this a receipt's KL is as good as nothing, and a ratio to it would say nothing


@dataclass
class Drift:
    """Written by the thread that scores; `kl` holds the KL of each token of a request, float64 [tokens]."""

    requests: Counter = field(default_factory=lambda: Counter(DEFINITIONS["shadow_requests"]))
    tokens: Counter = field(default_factory=lambda: Counter(DEFINITIONS["shadow_tokens"]))
    nats: Counter = field(default_factory=lambda: Counter(DEFINITIONS["shadow_kl_nats"]))
    loss: Counter = field(default_factory=lambda: Counter(DEFINITIONS["shadow_loss_nats"]))
    seconds: Counter = field(default_factory=lambda: Counter(DEFINITIONS["shadow_cpu_seconds"]))
    recent: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=REQUESTS))

    def metrics(self) -> list[Counter]:
        """The counters; none before anything was sampled."""
        return [self.requests, self.tokens, self.nats, self.loss, self.seconds] if self.requests.values else []

    def scored(self, kl: np.ndarray, served: float, original: float) -> None:
        """A request: KL of its tokens, and the sums of -log probability that served and original weights give its answer."""
        kl = np.minimum(kl, MOST)
        self.recent.append(kl)
        self.requests.add(1, "scored")
        self.tokens.add(len(kl))
        self.nats.add(float(kl.sum()))
        self.loss.add(min(served, MOST * len(kl)), "served")
        self.loss.add(min(original, MOST * len(kl)), "original")

    @property
    def kl(self) -> tuple[float, float, float] | None:
        """(mean, low, high) in nats per token of the last requests; None while they are too few."""
        from ..quality.intervals import mean_interval

        recent = list(self.recent)
        if len(recent) < ENOUGH:
            return None
        values = np.concatenate(recent)
        low, high = mean_interval(values, np.repeat(np.arange(len(recent)), [len(one) for one in recent]), draws=200, positive=True)
        return float(values.mean()), low, high

    def ratio(self, receipt: float | None) -> float | None:
        """The mean over the receipt's; None while either is unknown."""
        kl = self.kl
        return None if kl is None or receipt is None else kl[0] / max(receipt, LEAST)
