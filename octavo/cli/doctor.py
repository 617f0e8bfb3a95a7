"""`octavo doctor TOPIC PATH`: examine something and say what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError
from ._command import Command
from ._printing import printable

if TYPE_CHECKING:
    from ..doctor import Complaint, Finding, Report, Topic

SHOWN = 5  # findings of one kind, without --all
OUTPUT = ("topic", "path", "all", "json")  # what is not the complaint's


@dataclass
class Options:
    topic: Literal["checkpoint", "accuracy", "speed", "memory"]
    """What to examine: checkpoint (damaged or contradicting files); accuracy (answers got worse); speed (no speed-up); memory (does not fit)."""

    path: Path
    """The model: a folder, a .gguf file, or, but for checkpoint, a hub id."""

    _: KW_ONLY

    quantization: str | None = None
    """The precision it is served in, as for `octavo serve`; default: what it is stored in."""

    kv_cache: str | None = None
    """Precision of the key-value cache, as for `octavo serve`."""

    backend: str = "native"
    """What computes: native, or reference."""

    threads: int | None = None
    """Threads of the kernels, as for `octavo serve`."""

    isa: str | None = None
    """Instruction set, as for `octavo serve`."""

    max_model_len: int | None = None
    """Longest prompt and answer together, as for `octavo serve`."""

    against: str | None = None
    """The original that the model was made of: what was lost, and what was gained, is measured against it."""

    data: Path | None = None
    """accuracy: the text that it was calibrated on, .txt or .jsonl."""

    traffic: Path | None = None
    """accuracy: what users ask, a text or a chat a line (.jsonl); quality is then measured on it, too."""

    users: int = 1
    """speed, memory: sequences at a time."""

    context: int | None = None
    """speed, memory: tokens of each, prompt and answer; default for memory: as many as the model takes."""

    kv_memory_mb: int | None = None
    """memory: what the server is told to give the key-value cache."""

    max_batch: int | None = None
    """memory: sequences that the server computes together, as for `octavo serve`."""

    prefix_cache: bool = True
    """memory: whether the server keeps prompts' beginnings."""

    shadow: bool = False
    """memory: the server holds the original, too (--shadow-share, --compare)."""

    policy_dir: Path | None = None
    """speed: the folder of policies that the server is told."""

    cache: bool = True
    """Keep what is quantized, and load it from there the next time."""

    cache_dir: Path | None = None
    """Where it is kept; default: OCTAVO_CACHE, or ~/.cache/octavo."""

    all: bool = False
    """Print every finding, not only the first few of a kind."""

    json: bool = False
    """Print JSON."""


def run(options: Options) -> int:
    """Examine a model: measure, name the cause with its evidence, and give the command that mends it. Exit status 1 where an error was found."""
    from ..doctor import topics
    from ..registry import lookup

    topic: Topic = lookup("topic", options.topic, topics())
    complaint = _complaint(options, topic)
    path = options.path.expanduser()
    report = topic.examine(path) if complaint is None else topic.examine(path, complaint)
    print(json.dumps(report.to_json(), indent=2) if options.json else "\n".join(_lines(report, options.all)))
    return 0 if report.healthy else 1


def _complaint(options: Options, topic: Topic) -> Complaint | None:
    """What the options say of how the model is run; None for a topic that takes no such. Raises UsageError for options that mean nothing to it."""
    from ..doctor import Complaint

    said = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in OUTPUT}
    plain = {field.name: field.default for field in fields(Complaint)}
    strange = [name for name, value in said.items() if value != plain[name] and name not in topic.takes]
    if strange:
        flag = f"--{strange[0].replace('_', '-')}"
        raise UsageError(f"means nothing to `octavo doctor {options.topic}`", where=flag, remedy="leave it out; `octavo doctor --help` says what it is for")
    return Complaint(**said) if topic.takes else None


def _lines(report: Report, everything: bool) -> Iterator[str]:
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
    yield printable(str(report.path)) + (f" ({printable(facts)})" if facts else "")
    for one in report.asked:
        yield f"  {one.question} {printable(one.answer)}"
    for kind, same in groupby(report.findings, key=lambda finding: finding.disorder):
        findings = list(same)
        yield f"{kind.severity}: {kind.code}: {kind.what}"
        shown = findings if everything else findings[:SHOWN]
        for finding in shown:
            yield from _finding(finding)
        if len(findings) > len(shown):
            yield f"    and {len(findings) - len(shown)} more (--all)"
        yield f"    what to do: {kind.remedy}"
    counts = report.counts
    yield "healthy" if not report.findings else ", ".join(f"{counts[s]} {s}" + ("s" if counts[s] != 1 and s != "info" else "") for s in counts)


def _finding(finding: Finding) -> Iterator[str]:
    yield f"    {printable(finding.tensor)}: {printable(finding.evidence)}" if finding.tensor else f"    {printable(finding.evidence)}"
    if finding.command:
        yield f"    run: {printable(finding.command)}"


COMMAND = Command("doctor", Options, run)
