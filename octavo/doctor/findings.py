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

    def __call__(self, tensor: str, evidence: str, command: str = "") -> Finding:
        return Finding(self, tensor, evidence, command)


@dataclass(frozen=True)
class Finding:
    """A place that has a disorder: the tensor (or file, or field of the config) and the numbers that show it. command: what mends it, to be typed as it
    is; "" where the remedy is no command."""

    disorder: Disorder
    tensor: str
    evidence: str
    command: str = ""

    def to_json(self) -> dict[str, str]:
        kind = self.disorder
        found = {"code": kind.code, "severity": kind.severity, "tensor": self.tensor, "evidence": self.evidence, "what": kind.what, "remedy": kind.remedy}
        return {**found, "command": self.command} if self.command else found


@dataclass(frozen=True)
class Asked:
    """A question of a decision tree and its answer in words. answered: False where it was not measured, and the answer says why."""

    question: str
    answer: str
    answered: bool = True


@dataclass
class Report:
    """What was examined, and what was found: worst first, in the order of the checks. asked: the way through a decision tree."""

    path: Path
    subject: str
    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

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
        facts = {name.replace(" ", "_"): value for name, value in self.facts.items()}
        return {"path": str(self.path), "subject": self.subject, **facts, "healthy": self.healthy,
                "counts": {severity: self.counts[severity] for severity in SEVERITIES}, "findings": [f.to_json() for f in self.findings],
                **({"asked": [vars(one) for one in self.asked]} if self.asked else {})}


@dataclass(frozen=True)
class Topic:
    """Something that can be examined: `examine(path)`, or `examine(path, complaint)` where it takes more than a path, gives a Report; `disorders()` is what
    it knows; takes: the fields of a Complaint that mean something to it."""

    examine: Callable[..., Report]
    disorders: Callable[[], list[Disorder]]
    takes: frozenset[str] = frozenset()
