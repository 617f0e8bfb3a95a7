"""Limits: what each line of the checklist must keep; read from a TOML or JSON file, with defaults for all that it does not name."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import UsageError

LINES = ("latency_p50", "latency_p95", "latency_p99", "first_token_p95", "requests_per_s", "kl", "perplexity", "agreement", "load", "cost", "memory",
         "settings", "alerts")
HOUR = 3600.0


@dataclass(frozen=True)
class Unit:
    """What a limit is counted in, and the values that can be meant."""

    name: str
    low: float = 0.0
    high: float = math.inf
    instead: str = ""
    """What a value outside is likely to be."""


SECONDS = Unit("seconds", 0, HOUR, "milliseconds")
SHARE = Unit("a share from 0 to 1", 0, 1, "percent")
RATIO = Unit("times the original's", 0.01, 100, "percent")
UNITS = {"latency_p50": SECONDS, "latency_p95": SECONDS, "latency_p99": SECONDS, "first_token_p95": SECONDS, "latency_ratio": RATIO,
         "requests_per_s": Unit("requests a second"), "requests_ratio": RATIO, "kl": Unit("nats per token"), "perplexity_ratio": RATIO, "agreement": SHARE,
         "errors": SHARE, "cost_ratio": RATIO, "cost": Unit("the price of a million tokens"), "memory_ratio": RATIO, "memory_mb": Unit("MB")}


@dataclass(frozen=True)
class Limits:
    """None: no such limit. Ratios are the model's over the original's, under the same load on the same machine.

    What users put up with only the one who knows them can say: the absolute times here are where nobody waits any longer, and are meant to be replaced. What
    holds without asking is that a quantization must not answer more slowly than what it replaces.
    """

    latency_p50: float | None = 20.0
    """Seconds from when a request was due to the end of its answer, median, at most."""
    latency_p95: float | None = 40.0
    """The same, 95th percentile."""
    latency_p99: float | None = 60.0
    """The same, 99th percentile."""
    first_token_p95: float | None = 20.0
    """Seconds to the first text, 95th percentile, at most."""
    latency_ratio: float | None = 1.1
    """Each of the four above over the original's, at most."""
    requests_per_s: float | None = None
    """Answered requests a second, at least."""
    requests_ratio: float | None = 0.95
    """The same over the original's, at least."""
    kl: float | None = 0.1
    """Mean KL divergence from the original, nats per token, at most; the upper end of the interval must keep it."""
    perplexity_ratio: float | None = 1.05
    """Perplexity over the original's, at most; the upper end of the interval must keep it."""
    agreement: float | None = 0.85
    """Share of tokens with the same first choice, at least; the lower end of the interval must keep it."""
    errors: float | None = 0.01
    """Share of requests that failed under load, at most."""
    cost_ratio: float | None = 1.05
    """Machine time for a token of an answer over the original's, at most."""
    cost: float | None = None
    """Price of a million tokens of answers, at most; needs --cost-per-hour."""
    memory_ratio: float | None = 1.1
    """Most resident memory of the server over the original's, at most."""
    memory_mb: float | None = None
    """Most resident memory of the server, MB, at most."""
    required: tuple[str, ...] = ("kl", "perplexity", "agreement", "load", "settings")
    """Lines without which there is no pass: not measured counts as failed."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "required":
                for name in value:
                    if name not in LINES:
                        raise UsageError(f"unknown line {name!r}", where="required", remedy=f"known: {', '.join(LINES)}")
            elif value is not None:
                _check(field.name, value)

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def _check(name: str, value: float) -> None:
    unit = UNITS[name]
    if not 0 <= value < math.inf:
        raise UsageError(f"must be 0 or more ({unit.name}), not {value}", where=name, remedy="false switches a limit off")
    if not unit.low <= value <= unit.high:
        raise UsageError(f"{value:g} cannot be meant: it is counted in {unit.name}, not in {unit.instead}", where=name, remedy="false switches a limit off")


def read_limits(path: Path) -> Limits:
    """Limits of a .toml or .json file: one object, keys as in Limits; false (or null) switches a limit off. Raises UsageError."""
    try:
        content = path.read_text(encoding="utf-8")
        found = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {getattr(error, 'strerror', None) or 'no UTF-8 text'}", where=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"is no {'JSON' if path.suffix == '.json' else 'TOML'}: {error}", where=str(path), remedy="such as kl = 0.05") from None
    known = {field.name for field in fields(Limits)}
    if not isinstance(found, dict):
        raise UsageError("is no table of limits", where=str(path), remedy=f"known: {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name not in known:
            near = get_close_matches(name, sorted(known), 1)
            raise UsageError(f"unknown limit {name!r}{f', did you mean {near[0]}?' if near else ''}", where=str(path),
                             remedy=f"known: {', '.join(sorted(known))}")
        if name == "required":
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise UsageError("must be a list of lines", where=f"{path}, required", remedy=f"of {', '.join(LINES)}")
            values[name] = tuple(value)
        elif value is False or value is None:
            values[name] = None
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"must be a number ({UNITS[name].name}), not {value!r}", where=f"{path}, {name}", remedy="false switches a limit off")
        else:
            values[name] = float(value)
    try:
        return Limits(**values)
    except UsageError as error:
        raise UsageError(error.what, where=f"{path}, {error.where}", remedy=error.remedy) from None
