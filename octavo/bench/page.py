"""The HTML page of a bench: the table, how latencies lie, what happened over time. One file, no script, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..charts import Line, bars, heading, lines, page, paragraph, table
from ..traffic import Result
from .sweep import saturation
from .table import rows, shown

POINTS = 300  # of a curve; more would only make the file larger


def html(results: Sequence[Result], cost_per_hour: float | None = None, sweeping: bool = False) -> str:
    """The whole document."""
    found = rows(results, cost_per_hour)
    first = results[0]
    titles, cells = shown(found, compared=len(results) > 1 and not sweeping)
    parts = [
        paragraph(f"{first.target['model']}: {first.load['arrivals']}, {first.summary.seconds:.0f} s measured after {first.load['warmup']:g} s of warm-up; "
                  f"prompts: {first.prompts['name']} ({first.summary.prompt_tokens:.0f} tokens in, {first.summary.answer_tokens:.0f} out on average)."),
        table(titles, cells),
        paragraph(how_measured(results), quiet=True),
    ]
    if sweeping:
        parts += _sweep(results)
    parts += [heading("Latency"), lines([_curve(r) for r in results], title="Share of requests answered within a time",
                                        x="seconds from when the request was due", y="share of requests")]
    if len(results) > 1 and not sweeping:
        parts.append(bars([r.label for r in results], {"median": [r.summary.latency.p50 for r in results], "p95": [r.summary.latency.p95 for r in results],
                                                       "p98": [r.summary.latency.p98 for r in results]}, title="Latency", y="seconds"))
    parts += [heading("Over time"),
              lines([Line(r.label, r.summary.timeline["at"], r.summary.timeline["tokens_per_s"]) for r in results], title="Tokens per second",
                    x="seconds of the measured time", y="tokens per second"),
              lines([Line(r.label, r.summary.timeline["at"], r.summary.timeline["running"]) for r in results], title="Requests under way",
                    x="seconds of the measured time", y="requests")]
    parts += _errors(results)
    told = f"Measured {first.created} by octavo {first.client['octavo']} on {first.client['machine']}. "
    parts.append(paragraph(told + f"Server: {first.target['url']}, octavo {first.server.get('version', 'unknown')}.", quiet=True))
    return page(f"Load test of {first.target['model']}", parts)


def how_measured(results: Sequence[Result]) -> str:
    """What a reader must know to trust the numbers."""
    found = [r.summary for r in results]
    cached = sorted({f"{s.cached_share:.0%}" for s in found}, key=lambda text: float(text[:-1]))
    text = (f"Seen from the client, streaming. The client took {max(s.client_share for s in found):.0%} of a core; its event loop was late by less than "
            f"{1e3 * max(s.late_p99 for s in found):.1f} ms in 99% of looks. {' to '.join(cached[:1] + cached[1:][-1:])} of the prompts' tokens came from "
            "the server's prefix cache. ")
    if found[0].latency_corrected is None:
        return text + "Open loop: a request's time counts from when it was due, sent or not, so a stall shows in full."
    return text + ("Closed loop: users wait for their answers, so a stall keeps requests from being sent; the corrected percentile counts those too, "
                   "had every user asked in the usual rhythm.")


def _curve(result: Result) -> Line:
    """The share of requests that had ended after each time."""
    latency = np.sort(result.series().latency)
    share = np.arange(1, len(latency) + 1) / max(len(latency), 1)
    keep = np.unique(np.linspace(0, len(latency) - 1, min(POINTS, len(latency))).astype(int)) if len(latency) else np.zeros(0, int)
    return Line(result.label, latency[keep].tolist(), share[keep].tolist())


def _sweep(results: Sequence[Result]) -> list[str]:
    """Rates and latencies by users, for each side of the sweep."""
    sides: dict[str, list[Result]] = {}
    for result in results:
        sides.setdefault(result.label.rpartition(", ")[0], []).append(result)
    users = {side: [r.summary.running for r in own] for side, own in sides.items()}
    parts = [heading("Sweep")]
    for side, own in sides.items():
        found = saturation(own)
        kept = f" The service level held for 95% of requests up to {found.kept}." if found.kept else ""
        parts.append(paragraph(f"{side}: {found.tokens_per_s:.1f} tokens/s, reached with {found.label.rpartition(', ')[2]}.{kept}"))
    for title, unit, value in (("Tokens per second", "tokens per second", lambda r: r.summary.tokens_per_s),
                               ("Latency p95", "seconds", lambda r: r.summary.latency.p95)):
        parts.append(lines([Line(side, users[side], [value(r) for r in own], dots=True) for side, own in sides.items()], title=f"{title} by users",
                           x="requests under way, on average", y=unit, log_x=True))
    return parts


def _errors(results: Sequence[Result]) -> list[str]:
    found = [(r.label, kind, count, r.summary.error_examples.get(kind, "")) for r in results for kind, count in r.summary.errors.items()]
    return [heading("Errors"), table(("", "kind", "how many", "such as"), found)] if found else []
