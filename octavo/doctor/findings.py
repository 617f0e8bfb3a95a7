"""What the doctor says: a Disorder is a kind of defect, a Finding one place that has it, a Report all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEVERITIES = ("error", "warning", "info")  # worst first


@dataclass(frozen=True)
class Disorder:
    """A kind of defect. error: the model will not load, or computes something else; warning: some engine or some use will go wrong;
    info: worth knowing."""

    code: str
    severity: str
    what: str
    remedy: str

    def __call__(self, tensor: str, evidence: str) -> Finding:
        return Finding(self, tensor, evidence)


@dataclass(frozen=True)
class Finding:
    """A place that has a disorder: the tensor (or file, or field of the config) and the numbers that show it."""

    disorder: Disorder
    tensor: str
    evidence: str

    def to_json(self) -> dict[str, str]:
        kind = self.disorder
        return {"code": kind.code, "severity": kind.severity, "tensor": self.tensor, "evidence": self.evidence, "what": kind.what, "remedy": kind.remedy}


@dataclass
class Report:
    """What was examined, and what was found: worst first, in the order of the checks."""

    path: Path
    subject: str
    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, found: list[Finding]) -> None:
        self.findings = sorted([*self.findings, *found], key=lambda f: SEVERITIES.index(f.disorder.severity))

    @property
    def counts(self) -> Counter[str]:
        """Severity -> findings."""
        return Counter(finding.disorder.severity for finding in self.findings)

    @property
    def healthy(self) -> bool:
        """No errors."""
        return not self.counts["error"]

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "subject": self.subject, **self.facts, "healthy": self.healthy,
                "counts": {severity: self.counts[severity] for severity in SEVERITIES}, "findings": [f.to_json() for f in self.findings]}


@dataclass(frozen=True)
class Topic:
    """Something that can be examined: `examine(path)` gives a Report; `disorders()` is what it knows."""

    examine: Callable[[Path], Report]
    disorders: Callable[[], list[Disorder]]
