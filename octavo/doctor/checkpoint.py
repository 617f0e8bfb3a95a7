"""Checkpoints: everything that loading would trip over or, worse, not notice.

Works on the stored tensors as they are; that the codec refuses the files is a finding like any other. Reads every byte once or twice, piece by piece,
and never executes anything out of the files.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from ..registry import discover
from .checks import Check
from .findings import Disorder, Finding, Report, Topic
from .patient import Patient, admit

CHECKS = f"{__package__}.checks"
SAID_BY_MANY = 200  # findings of one kind that are kept; the last says how many more there are


def examine(path: Path) -> Report:
    """Raises UsageError for a path that is no folder and no .gguf file."""
    if not path.exists():
        raise UsageError("no such file or folder", where=str(path), remedy="name a model folder or a .gguf file")
    patient = admit(path)
    report = Report(path, "checkpoint", {"format": patient.format, "tensors": len(patient.names), "bytes": patient.nbytes})
    for check in discover(CHECKS, "CHECK").values():
        report.add(_some(list(check.run(patient))))
    return report


def disorders() -> list[Disorder]:
    return [disorder for check in _checks() for disorder in check.disorders]


def _checks() -> list[Check]:
    return list(discover(CHECKS, "CHECK").values())


def _some(found: list[Finding]) -> list[Finding]:
    """At most SAID_BY_MANY of each kind."""
    by_kind: dict[Disorder, list[Finding]] = {}
    for finding in found:
        by_kind.setdefault(finding.disorder, []).append(finding)
    kept: list[Finding] = []
    for kind, several in by_kind.items():
        kept += several[:SAID_BY_MANY]
        if len(several) > SAID_BY_MANY:
            kept.append(Finding(kind, "", f"and {len(several) - SAID_BY_MANY} more like these"))
    return kept


__all__ = ["Patient", "examine"]
TOPIC = Topic(examine, disorders)
