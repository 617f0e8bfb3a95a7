"""Line: one point of the checklist. Report: all of them, and what was measured for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from .limits import Limits

Status = Literal["pass", "fail", "not measured"]


@dataclass(frozen=True)
class Line:
    """value, original in `unit`, NaN where there is none; low and high: of the value, or of the ratio to the original's where `of_ratio`."""

    name: str
    title: str
    status: Status
    evidence: str
    value: float = math.nan
    unit: str = ""
    limit: str = ""
    original: float = math.nan
    low: float = math.nan
    high: float = math.nan
    of_ratio: bool = False

    def to_json(self) -> dict[str, Any]:
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in vars(self).items()}


@dataclass
class Report:
    """model, original   names as given
    precision, original_precision   what each is in, weights, activations and cache
    settings          everything needed to do it again, with hashes
    loss              of the comparison, as `octavo evaluate --json` has it; kl_by_position beside it
    load              what bench's results hold for each side, without the single requests
    curves            what the page draws: title -> side -> (x, y)
    """

    model: str
    original: str
    limits: Limits
    lines: Sequence[Line] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    load: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    precision: str = ""
    original_precision: str = ""

    @property
    def name(self) -> str:
        """The model's, without folders, and its precision."""
        return named(Path(self.model).name or self.model, self.precision)

    @property
    def original_name(self) -> str:
        """The original's, as given, and its precision."""
        return named(self.original, self.original_precision)

    @property
    def missing(self) -> list[str]:
        """Required lines that were not measured."""
        measured = {line.name for line in self.lines if line.status != "not measured"}
        return [name for name in self.limits.required if name not in measured]

    @property
    def passed(self) -> bool:
        return not self.missing and not any(line.status == "fail" for line in self.lines)

    @property
    def counts(self) -> dict[str, int]:
        return {status: sum(line.status == status for line in self.lines) for status in ("pass", "fail", "not measured")}

    @property
    def verdict(self) -> str:
        """In a few words, for people and the badge."""
        counts = self.counts
        if counts["fail"]:
            return f"failed {counts['fail']} of {len(self.lines)}"
        if self.missing:
            return f"not measured: {', '.join(self.missing)}"
        rest = f", {counts['not measured']} not measured" if counts["not measured"] else ""
        return f"passed {counts['pass']} of {len(self.lines)}{rest}"

    def to_json(self) -> dict[str, Any]:
        return {
            "octavo": "validate", "format": 1, "version": __version__, "model": self.model, "original": self.original, "precision": self.precision,
            "original_precision": self.original_precision, "passed": self.passed, "verdict": self.verdict, "counts": self.counts,
            "lines": [line.to_json() for line in self.lines], "limits": self.limits.to_json(), "settings": self.settings, "loss": self.loss, "load": self.load,
            "curves": {title: {side: {"x": _finite(x), "y": _finite(y)} for side, (x, y) in series.items()} for title, series in self.curves.items()},
            "notes": self.notes, "seconds": round(self.seconds, 1), "created": self.created,
        }


def named(model: str, precision: str) -> str:
    """A model and what it is in, without the exceptions."""
    plan, _, exceptions = precision.partition(";")
    return f"{model}, {plan}{' with exceptions' if exceptions else ''}" if plan else model


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
