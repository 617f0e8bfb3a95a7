"""The HTML page of an advice: the choice, the candidates, the Pareto front drawn, break-even batches, what hardware can do."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..charts import Line, heading, lines, page, paragraph, table
from .breakeven import BreakEven
from .candidate import front
from .decide import Decision, shown
from .hardware import FORMATS, MATRIX, NAMES, SOURCES, Row

TITLES = ("precision", "p95 of an answer", "per token", "tokens/s", "memory", "KL", "Pareto", "why")


def candidate_rows(decision: Decision) -> list[list[str]]:
    """A row for each candidate, as TITLES."""
    found = []
    for verdict in decision.verdicts:
        one = verdict.outcome
        name = one.name + (" (predicted)" if one.candidate.predicted else "")
        found.append([name, shown("p95", one.p95), shown("per_token", one.per_token), f"{one.tokens_per_s:.4g}", shown("memory", one.memory),
                      "–" if math.isnan(one.kl) else f"{one.kl:.4f}", "*" if verdict.on_front else "", verdict.why])
    return found


def matrix_rows(here: frozenset[str]) -> list[list[str]]:
    """A row for each generation of hardware: an arrow at this machine, its name, an answer for each of FORMATS, the note, keys of the sources."""
    def sources(row: Row) -> str:
        return ", ".join(dict.fromkeys(row.sources + (row.device.sources if row.device else ())))

    return [["→" if row.key in here else "", row.name, *row.answers, row.note, sources(row)] for row in MATRIX]


MATRIX_TITLES = ("", "hardware", *(NAMES[kind] for kind in FORMATS), "note", "sources")


def html(model: str, machine: str, decision: Decision, evens: Sequence[BreakEven], here: frozenset[str]) -> str:
    """The whole document."""
    load = decision.load
    choice = decision.choice
    parts = [
        paragraph(f"On {machine}, for {load.users} user{'s' if load.users > 1 else ''} at a time, {load.prompt} tokens in and {load.answer} out; "
                  f"goal: {decision.goal}."),
        heading(f"Take {choice.name}" if choice else "Nothing keeps all limits"),
        *(paragraph(reason) for reason in decision.reasons),
        table(TITLES, candidate_rows(decision), marks=["pass" if v.outcome is choice else "" for v in decision.verdicts]),
        *([heading("What would change it")] if decision.changes else []),
        *(paragraph(change) for change in decision.changes),
        heading("The Pareto front"),
        paragraph("Joined points are not beaten: no other candidate is at least as good in both figures, and better in one. The table marks those "
                  "that are not beaten in latency, memory and loss together."),
        _front(decision, "memory"), _front(decision, "p95"),
    ]
    if evens:
        parts += [heading("Break-even batches"), *(paragraph(str(one)) for one in evens)]
        parts += [_gains(one) for one in evens]
    parts += [heading("What hardware multiplies itself"),
              paragraph("native: its instructions take the format; emulated: stored so and widened on the way; no: nothing runs it. → is this machine."),
              table(MATRIX_TITLES, matrix_rows(here)), heading("Sources"), *(paragraph(f"{key}: {text}", quiet=True) for key, text in SOURCES.items())]
    return page(f"Advice for {model}", parts)


def _front(decision: Decision, across: str) -> str:
    """The loss over memory or latency; joined are those that no other beats in these two."""
    known = [v.outcome for v in decision.verdicts if not math.isnan(v.outcome.kl)]
    best = front(known, (across, "kl"))

    def line(name: str, chosen: bool, joined: bool) -> Line:
        points = sorted((one.memory / 1e6 if across == "memory" else one.p95, one.kl, one.name) for one in known if (one.name in best) == chosen)
        return Line(name, [x for x, _, _ in points], [y for _, y, _ in points], dots=True, joined=joined, labels=[n for _, _, n in points])

    series = [one for one in (line("not beaten", True, True), line("beaten", False, False)) if one.x]
    label = "memory in MB" if across == "memory" else "p95 of an answer in seconds"
    return lines(series, title=f"Loss over {'memory' if across == 'memory' else 'latency'}", x=label, y="KL in nats per token") if series else ""


def _gains(one: BreakEven) -> str:
    batches = [float(b) for b, _, _ in one.gains]
    series = [Line("measured", batches, [m for _, _, m in one.gains], dots=True), Line("predicted", batches, [p for _, p, _ in one.gains], dots=True)]
    return lines(series, title=f"{one.few} over {one.many}", x="sequences together", y="times as fast", log_x=len(batches) > 1)
