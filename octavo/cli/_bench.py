"""What `octavo bench` shows on a terminal: a live line while it measures, the table, the verdicts."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._printing import printable

if TYPE_CHECKING:
    from ..bench import Pair
    from ..traffic import Recording, Result


class Progress:
    """A line that is drawn once a second by the one who measures: a thread that draws by itself would make its event loop late."""

    def __init__(self, seconds: float | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._bar = Bar(TextColumn("{task.description}"), BarColumn(bar_width=16), TextColumn("{task.fields[now]}"), console=self._console, transient=True,
                        auto_refresh=False, disable=not self._console.is_terminal)
        self._seconds = seconds
        self._task = self._bar.add_task("", total=None, now="")
        self._last = ""

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def tell(self, what: str, recording: Recording | None) -> None:
        if recording is None:
            if not self._console.is_terminal and what != self._last:
                print(printable(what), file=sys.stderr)
            self._last = what
            self._bar.update(self._task, description=printable(what), total=None, now="")
        else:
            done = [s for s in recording.samples[-4000:] if s.end == s.end]
            latest = sorted(s.latency for s in done[-200:] if s.good)
            failed = sum(not s.good for s in done)
            now = (f"{len(recording.samples)} sent, {len(recording.samples[-4000:]) - len(done)} open, "
                   f"{f'{failed} failed, ' if failed else ''}{f'p50 {latest[len(latest) // 2]:.2f} s' if latest else 'no answer yet'}")
            load = recording.load
            total = load.warmup + self._seconds if self._seconds is not None else load.requests
            first = recording.samples[0].due if recording.samples else 0.0
            spent = time.monotonic() - first if self._seconds is not None else len(done)
            self._bar.update(self._task, description=printable(what), total=total, completed=min(spent, total or spent), now=now)
        self._bar.refresh()

    def say(self, result: Result) -> None:
        """A line for each that is done, above the live one."""
        s = result.summary
        line = (f"{result.label}: {s.requests} requests, median {s.latency.p50:.3f} s, p95 {s.latency.p95:.3f} s, p99 {s.latency.p99:.3f} s, "
                f"{s.tokens_per_s:.1f} tokens/s, {s.failed} failed")
        self._bar.console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def _table(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 240  # a file or a pipe has no width of its own
    needed = sum(2 + max(map(len, column)) for column in zip(titles, *cells, strict=True))
    if needed > console.width:                           # a figure a line, then, and a side a column
        titles, *cells = [list(column) for column in zip(titles, *cells, strict=True)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, title in enumerate(titles):
        table.add_column(title, justify="right" if place else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def show(results: Sequence[Result], found: Sequence[dict[str, Any]], sweeping: bool) -> None:
    """The table, what must be known of it, failures."""
    from ..bench.page import how_measured
    from ..bench.sweep import saturation
    from ..bench.table import shown

    first = results[0]
    print(f"{printable(first.target['model'])}: {first.load['arrivals']}, {first.summary.seconds:.0f} s measured, prompts: {printable(first.prompts['name'])} "
          f"({first.summary.prompt_tokens:.0f} tokens in, {first.summary.answer_tokens:.0f} out)\n")
    _table(*shown(found, compared=len(results) > 1 and not sweeping))
    print(f"\n{how_measured(results)}")
    if first.slo is not None:
        print(f"service level: {first.slo}")
    if sweeping:
        sides = dict.fromkeys(r.label.rpartition(", ")[0] for r in results)
        for side in sides:
            at = saturation([r for r in results if r.label.rpartition(", ")[0] == side])
            print(f"saturated: {printable(at.label)}, {at.tokens_per_s:.1f} tokens/s" + (f"; service level kept up to {printable(at.kept)}" if at.kept else ""))
    for result in results:
        for kind, count in result.summary.errors.items():
            print(f"failed, {printable(result.label)}: {count} of {result.summary.requests}, {printable(kind)}: "
                  f"{printable(result.summary.error_examples.get(kind, ''))}")
        if result.summary.client_share > 0.5:
            print(f"note: the client took {result.summary.client_share:.0%} of a core; latencies may be its own", file=sys.stderr)


def show_pair(pair: Pair, confidence: float) -> None:
    print(f"{printable(pair.b)} against {printable(pair.a)}, {confidence:.0%} for all verdicts together")
    cells = [[f.name, _number(f.a), _number(f.b), f"{f.ratio:.3f}" if math.isfinite(f.ratio) else "–",
              f"{f.low:.3f} to {f.high:.3f}" if math.isfinite(f.low) else "–", f.verdict] for f in pair.figures]
    _table(["", "a", "b", "b / a", "interval", "b is"], cells)
    for text in pair.warnings:
        print(f"note: {text}")
    print()


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"
