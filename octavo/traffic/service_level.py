"""ServiceLevel: what a user may expect of a request, as in `ttft=500ms,itl=50ms,latency=5s`. Requests that keep all of it are goodput."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from .sample import Sample

UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "us": 1e-6}


@dataclass(frozen=True)
class ServiceLevel:
    """Limits in seconds; None: no limit. `itl` is of a request's mean time per output token, since one late token in a thousand is no bad answer."""

    ttft: float | None = None
    itl: float | None = None
    latency: float | None = None

    @classmethod
    def parse(cls, text: str, where: str = "--slo") -> ServiceLevel:
        found: dict[str, float] = {}
        for part in text.split(","):
            name, equals, value = part.strip().partition("=")
            if name not in ("ttft", "itl", "latency") or not equals or name in found:
                raise UsageError(f"cannot read {part.strip()!r}", where=where, remedy="as in ttft=500ms,itl=50ms,latency=5s")
            found[name] = seconds(value, where)
        return cls(**found)

    def kept(self, sample: Sample) -> bool:
        """NaN (no first token, an answer of one token) breaks no limit but that of the latency."""
        pairs = ((self.ttft, sample.ttft), (self.itl, sample.tpot), (self.latency, sample.latency))
        return sample.good and not any(limit is not None and value > limit for limit, value in pairs)

    def __str__(self) -> str:
        return ",".join(f"{name}={value * 1000:g}ms" for name, value in vars(self).items() if value is not None)


def seconds(text: str, where: str) -> float:
    """"5m" -> 300.0; units us, ms, s, m (min), h; a bare number is seconds."""
    text = text.strip()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    try:
        value = float(number) * UNITS[text[len(number):] or "s"]
    except (ValueError, KeyError):
        raise UsageError(f"{text!r} is no time", where=where, remedy="such as 500ms, 30s or 5m") from None
    if not 0 <= value < float("inf"):
        raise UsageError(f"{text!r} is no time", where=where, remedy="such as 500ms, 30s or 5m")
    return value
