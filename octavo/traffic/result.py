"""Result: one measured run, with everything needed to judge it later; a file of them."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import UsageError
from .difference import Series
from .drive import Recording
from .percentiles import Spread
from .prompts import Prompts
from .service_level import ServiceLevel
from .summary import Summary, summarize
from .target import Target

FORMAT = 1
COLUMNS = ("due", "sent", "first", "last", "end", "tokens", "chunks", "prompt_tokens", "cached_tokens", "error")


@dataclass
class Result:
    """label     what the run is called: a precision, a number of users
    target       url, model, endpoint, temperature
    load         arrivals, duration, warm-up
    prompts      name, sha256, how many different ones, how many were asked, those that do not count included
    summary      see Summary
    server       what the server told (see facts), and its memory where it is a process of this machine
    requests     columns of those that count, in the order of `due`: times in seconds from the start of the measured time, null where there is none
    """

    label: str
    target: dict[str, Any]
    load: dict[str, Any]
    prompts: dict[str, Any]
    summary: Summary
    requests: dict[str, list[Any]]
    slo: str | None = None
    server: dict[str, Any] = field(default_factory=dict)
    client: dict[str, str] = field(default_factory=lambda: {"octavo": __version__, "python": platform.python_version(), "machine": platform.machine()})
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def of(cls, label: str, target: Target, prompts: Prompts, recording: Recording, level: ServiceLevel | None, server: dict[str, Any]) -> Result:
        load = recording.load
        counted = sorted(recording.counted, key=lambda s: s.due)
        times = {name: [_near(getattr(s, name) - recording.began) for s in counted] for name in COLUMNS[:5]}
        numbers = {name: [getattr(s, name) for s in counted] for name in COLUMNS[5:]}
        return cls(
            label, {"url": target.url, "model": target.model, "endpoint": target.endpoint, "temperature": target.temperature},
            {"arrivals": str(load.arrivals), "duration": load.duration, "requests": load.requests, "warmup": load.warmup},
            {"name": prompts.name, "sha256": prompts.sha256, "different": len(prompts), "asked": len(recording.samples), "ignore_end": prompts.ignore_end},
            summarize(recording, level), times | numbers, str(level) if level is not None else None, server,
        )

    def series(self) -> Series:
        """The requests that were answered, for `difference`."""
        good = np.array([not error for error in self.requests["error"]], bool)
        due, first, last, end, tokens = (np.array([math.nan if v is None else v for v in self.requests[name]], np.float64)[good]
                                         for name in ("due", "first", "last", "end", "tokens"))
        with np.errstate(invalid="ignore", divide="ignore"):
            tpot = np.where(tokens > 1, (last - first) / (tokens - 1), np.nan)
        return Series(due, end, end - due, first - due, tpot, tokens, self.summary.seconds)

    def to_json(self) -> dict[str, Any]:
        return {**{name: value for name, value in vars(self).items() if name != "summary"}, "summary": self.summary.to_json()}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Result:
        """Raises KeyError, TypeError or ValueError where it is none."""
        summary = dict(found["summary"])
        for name in ("latency", "latency_corrected", "ttft", "itl", "tpot"):
            if summary[name] is not None:
                numbers: dict[str, Any] = {key: math.nan if value is None else value for key, value in summary[name].items()}
                summary[name] = Spread(**numbers)
        result = cls(**{**found, "summary": Summary(**summary)})
        lengths = {len(result.requests[name]) for name in COLUMNS}
        if len(lengths) != 1:
            raise ValueError("columns of different lengths")
        return result


def _near(value: float) -> float | None:
    """To ten microseconds; None for NaN, which JSON cannot say."""
    return round(value, 5) if math.isfinite(value) else None


def write_results(path: Path, results: Sequence[Result], more: dict[str, Any] | None = None) -> None:
    """One JSON file. Raises UsageError where it cannot be written."""
    content = {"format": FORMAT, "octavo": "bench", **(more or {}), "runs": [r.to_json() for r in results]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from None


def read_results(path: Path) -> list[Result]:
    """The runs of a file that `write_results` wrote. Raises UsageError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("octavo") != "bench" or found.get("format") != FORMAT:
            raise ValueError("not what `octavo bench --out` writes")
        return [Result.from_json(run) for run in found["runs"]]
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"holds no results: {error}", where=str(path), remedy="write one with octavo bench --out FILE.json") from None


__all__ = ["Result", "read_results", "write_results"]
