"""The HTML of a report: verdict, checklist, evidence, plots, settings. One file, no script, nothing from the network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from ..charts import Line as Curve
from ..charts import bars, escaped, heading, lines, page, paragraph, table
from .lines import Line, Report

MARKS = {"pass": "pass", "fail": "fail", "not measured": "quiet"}
SIGNS = {"pass": "✓ pass", "fail": "✗ fail", "not measured": "– not measured"}


def html(report: Report) -> str:
    """The whole document."""
    return page(f"Validation of {report.name}: {report.verdict}", list(_parts(report)))


def _parts(report: Report) -> Iterator[str]:
    machine = report.settings["machine"]
    yield paragraph(f"Against {report.original_name}. Measured {report.created} in {report.seconds:.0f} s by octavo {report.settings['versions']['octavo']} "
                    f"on {machine['cores']} cores of {machine['processor']} ({machine['isa']}).")
    yield heading("Checklist")
    yield table(("line", "result", "measured", "original", "limit", "interval"), [_cells(line) for line in report.lines],
                marks=[MARKS[line.status] for line in report.lines], marked=1)
    yield paragraph("x: times the original's. Intervals hold a value with 95%, ratios with 99% for all together. Accuracy passes when the unfavourable "
                    "end of its interval keeps the limit; a ratio of times or rates fails when all of its interval lies beyond the limit, and is not "
                    "judged where the interval says too little.", quiet=True)
    yield heading("Evidence")
    yield "<dl>" + "".join(f"<dt>{escaped(line.title)}: <strong class={MARKS[line.status]}>{SIGNS[line.status]}</strong></dt><dd>{escaped(line.evidence)}</dd>"
                           for line in report.lines) + "</dl>"
    for note in report.notes:
        yield paragraph(f"Note: {note}")
    yield paragraph("Signed: ______________________________   Date: ______________")
    yield from _plots(report)
    yield heading("Settings")
    yield paragraph("All that it takes to do this again, with the sha256 of every file.", quiet=True)
    if report.settings.get("command"):
        yield f'<pre style="white-space: pre-wrap">{escaped(report.settings["command"])}</pre>'
    for name, content in report.settings.items():
        if name == "command":
            continue
        yield (f'<details><summary>{escaped(name.replace("_", " "))}</summary><div class="wide" tabindex="0"><pre>{escaped(json.dumps(content, indent=1))}'
               "</pre></div></details>")


def _cells(line: Line) -> tuple[str, ...]:
    if not math.isfinite(line.low):
        span = ""
    elif line.unit.startswith("share"):
        span = f"{line.low:.1%} to {line.high:.1%}"
    else:
        span = f"{line.low:.3g} to {line.high:.3g}{' x' if line.of_ratio else ''}"
    return line.title, SIGNS[line.status], measured(line.value, line.unit), measured(line.original, line.unit), line.limit, span


def measured(value: float, unit: str) -> str:
    """A number with its unit; nothing where there is none."""
    if not math.isfinite(value):
        return ""
    return f"{value:.1%} {unit.removeprefix('share').strip()}".strip() if unit.startswith("share") else f"{value:.4g} {unit}".strip()


def _plots(report: Report) -> Iterator[str]:
    axes = {"Share of requests answered within a time": ("seconds from when the request was due", "share of requests"),
            "Tokens per second": ("seconds of the measured time, first run", "tokens per second"),
            "KL divergence by position in the text": ("tokens before", "mean KL, nats per token")}
    if report.curves:
        yield heading("Plots")
    for title, series in report.curves.items():
        across, upward = axes[title]
        yield lines([Curve(name, x, y) for name, (x, y) in series.items()], title=title, x=across, y=upward)
    times = [line for line in report.lines if line.unit == "s" and math.isfinite(line.value)]
    if times:
        names = [line.title.replace("Latency, ", "").replace(" percentile", "") for line in times]
        yield bars(names, {"original": [line.original for line in times], "model": [line.value for line in times]}, title="Latency", y="seconds")
    memory = next((line for line in report.lines if line.name == "memory" and math.isfinite(line.value)), None)
    if memory is not None:
        yield bars(["original", "model"], {"memory": [memory.original, memory.value]}, title="Most resident memory of the server", y="MB")
