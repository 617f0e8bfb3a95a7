"""`octavo doctor TOPIC PATH`: examine something and say what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ._command import Command
from ._printing import printable

if TYPE_CHECKING:
    from ..doctor import Report

SHOWN = 5  # findings of one kind, without --all


@dataclass
class Options:
    topic: Literal["checkpoint"]
    """What to examine: checkpoint (a model folder or a .gguf file)."""

    path: Path
    """Where it is."""

    _: KW_ONLY

    all: bool = False
    """Print every finding, not only the first few of a kind."""

    json: bool = False
    """Print JSON."""


def run(options: Options) -> int:
    """Examine a checkpoint: missing, damaged, contradicting or unread tensors, with evidence and remedy. Exit status 1 where something is wrong."""
    from ..doctor import topics
    from ..registry import lookup

    report = lookup("topic", options.topic, topics()).examine(options.path.expanduser())
    print(json.dumps(report.to_json(), indent=2) if options.json else "\n".join(_lines(report, options.all)))
    return 0 if report.healthy else 1


def _lines(report: Report, everything: bool) -> Iterator[str]:
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
    yield f"{printable(str(report.path))} ({facts})"
    for kind, same in groupby(report.findings, key=lambda finding: finding.disorder):
        findings = list(same)
        yield f"{kind.severity}: {kind.code}: {kind.what}"
        shown = findings if everything else findings[:SHOWN]
        for finding in shown:
            yield f"    {printable(finding.tensor)}: {printable(finding.evidence)}" if finding.tensor else f"    {printable(finding.evidence)}"
        if len(findings) > len(shown):
            yield f"    and {len(findings) - len(shown)} more (--all)"
        yield f"    what to do: {kind.remedy}"
    counts = report.counts
    yield "healthy" if not report.findings else ", ".join(f"{counts[s]} {s}" + ("s" if counts[s] != 1 and s != "info" else "") for s in counts)


COMMAND = Command("doctor", Options, run)
