"""`octavo list KIND`: what the directories of plug-ins hold, and which precision names are understood."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from ._command import Command

Row = dict[str, Any]
WRITTEN_ONLY = ("nvfp4",)  # a name for writing one form of another format


@dataclass
class Options:
    kind: Literal["formats", "methods", "checkpoints", "models", "kernels", "schemes", "findings"]
    """What to list."""

    _: KW_ONLY

    json: bool = False
    """Print JSON."""

    markdown: bool = False
    """Print a Markdown table, as docs/ holds it."""


def run(options: Options) -> None:
    """List number formats, methods, checkpoint formats, models, kernels or precision names."""
    rows = KINDS[options.kind]()
    print(json.dumps(rows, indent=2) if options.json else markdown(rows) if options.markdown else _plain(rows))


def formats() -> list[Row]:
    """Every number format with its range and what its bare name means for a weight."""
    from ..formats import formats as known

    rows = []
    for token, number in known().items():
        usual = {"none": "", "group": f"groups of {number.size}", "channel": "row"}[number.granularity]
        rows.append({
            "format": token, "bits": number.bits, "kind": number.kind, "range": f"{number.low:.6g} .. {number.high:.6g}", "smallest": f"{number.tiny:.4g}",
            "scales": f"{usual}, {number.scale_format}" if number.scaled else "", "also": " ".join(number.aliases),
            "what it is": _heading(f"octavo.formats.{token}", "What it is"), "when": _heading(f"octavo.formats.{token}", "When to choose it"),
        })
    return rows


def schemes() -> list[Row]:
    """Every precision name of other tools, with its meaning."""
    from ..schemes import NAMES, parse

    return [{"name": n.spelling, "means": str(parse(n.spelling)), "bits per weight": f"{parse(n.spelling).weight.bits_per_weight():.4g}",
             "name of": n.source, "note": n.note} for n in NAMES.values()]


def methods() -> list[Row]:
    """How floats become codes: the rounders, and the transforms that go before them, of `octavo quantize`."""
    from ..registry import discover

    rows = []
    for kind, package, constant in (("rounder", "octavo.quantize.rounders", "ROUNDER"), ("transform", "octavo.quantize.transforms", "TRANSFORM")):
        for name, method in discover(package, constant).items():
            module = f"{package}.{name}"
            rows.append({"name": name.replace("_", "-"), "kind": kind, "what it is": _first_line(sys.modules[module]).partition(": ")[2],
                         "options": " ".join(field.name for field in dataclasses.fields(method) if field.init), "when": _heading(module, "When to choose it"),
                         "limits": _heading(module, "Limits"), "source": _heading(module, "Source")})
    return sorted(rows, key=lambda row: (row["name"] != "rtn", row["kind"], row["name"]))


def checkpoints() -> list[Row]:
    """The formats on disk: what each is, whether it is written, when to choose it, and where its limits are."""
    from ..checkpoints import codecs, writers

    written = writers()
    rows = []
    for name in codecs():
        module = f"octavo.checkpoints.{name}"
        rows.append({
            "name": name.replace("_", "-"), "what it is": _first_line(sys.modules[module]).partition(": ")[2], "reads": "no" if name in WRITTEN_ONLY else "yes",
            "writes": "yes" if name in written else "no", "when": _heading(module, "When to choose it"), "limits": _heading(module, "Limits"),
            "source": _heading(module, "Source"),
        })
    return rows


def findings() -> list[Row]:
    """What `octavo doctor` can find, by its code."""
    from ..doctor import topics

    return [{"code": one.code, "topic": name, "severity": one.severity, "what it is": one.what, "what to do": one.remedy}
            for name, topic in topics().items() for one in topic.disorders()]


def models() -> list[Row]:
    """The architectures, by model_type."""
    return _plugins("octavo.models", "MODEL")


def kernels() -> list[Row]:
    """The backends."""
    return _plugins("octavo.kernels", "KERNELS")


KINDS: dict[str, Callable[[], list[Row]]] = {
    "formats": formats, "methods": methods, "checkpoints": checkpoints, "models": models, "kernels": kernels, "schemes": schemes,
    "findings": findings,
}


def markdown(rows: list[Row]) -> str:
    """A Markdown table, one line a row."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines: list[list[str]] = [columns, ["---"] * len(columns), *([str(row[c]).replace("|", "\\|") for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(rows: list[Row]) -> str:
    """Columns with blanks between them; the headings that a terminal has no room for are left to --json."""
    if not rows:
        return "nothing"
    columns = [c for c in rows[0] if c not in ("when", "limits", "source", "what to do")]
    table = [columns, *([str(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table)


def _plugins(package: str, constant: str) -> list[Row]:
    from ..registry import discover

    return [{"name": name, "what it is": _first_line(sys.modules[f"{package}.{name}"])} for name in discover(package, constant)]


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _heading(module: str, heading: str) -> str:
    """The text under one of the fixed headings of a plug-in's docstring, on one line."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    _, found, rest = text.partition(f"{heading}: ")
    lines: list[str] = []
    for line in rest.split("\n") if found else []:
        if lines and line.split(":")[0] in ("What it is", "When to choose it", "Limits", "Source"):
            break
        lines.append(line.strip())
    return " ".join(lines).strip()


COMMAND = Command("list", Options, run)
