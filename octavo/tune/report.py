"""What people see of a search: a progress bar while it runs, and the table of what was chosen, what it gains, and why."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from .paired import Interval
from .question import Answer, Question
from .race import Samples

if TYPE_CHECKING:
    from rich.table import Table

    from .tuner import Tuned


class Progress:
    """Watches a search on standard error: how much of the budget is used, what is being asked, who leads. `check` is called after every round
    and may raise to end the search. Use as a context manager."""

    def __init__(self, budget: float, check: Callable[[], None] = lambda: None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True, soft_wrap=True, highlight=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TimeElapsedColumn())
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=budget)
        self._began, self._check, self._label = time.perf_counter(), check, ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def asking(self, question: Question, stage: str, number: int, of: int) -> None:
        self._check()
        rows = f", {question.rows} rows" if question.rows else ""
        self._label = f"{stage} {number + 1}/{of}: {question.what}{rows}"
        self._show(self._label)

    def played(self, question: Question, samples: Samples) -> None:
        self._check()
        found = {name: samples.interval(name).mean for name in question.candidates if name in samples.ratios}
        best = max(found, key=lambda name: found[name], default="")
        self._show(f"{self._label}: {best} {100 * math.expm1(found[best]):+.1f}% after {samples.rounds} rounds" if best else self._label)

    def _show(self, text: str) -> None:
        self._bar.update(self._task, description=text[:110], completed=time.perf_counter() - self._began)


def table(tuned: Tuned) -> Table:
    """What was chosen, with the gain of the best candidate, its interval, and the reason; then the runs end to end. Rows of one kind of linear that
    keep the same default for the same reason share a line."""
    from rich.table import Table

    shown = Table(title=f"policy search, {tuned.seconds:.0f} s: {'changed' if tuned.changed else 'no change'}; {tuned.why}", title_justify="left")
    for name in ("choice", "rows", "chosen", "gain", "why"):
        shown.add_column(name, justify="right" if name == "gain" else "left", overflow="fold")
    lines: dict[tuple[str, ...], list[Answer]] = {}
    for answer in tuned.answers:
        why = answer.why + "".join(f"; {name} is out: it {reason}" for name, reason in answer.rejected if name not in answer.why)
        own = answer.rows if answer.changed else ""
        lines.setdefault((answer.what, answer.chosen, why, own), []).append(answer)
    for (what, chosen, why, own), answers in lines.items():
        best = max((a.interval for a in answers if a.interval is not None), key=lambda one: one.mean, default=None)
        rows = sorted((a.rows for a in answers), key=lambda text: int(text.partition("-")[0] or 0))
        shown.add_row(what, ", ".join(filter(None, rows)), chosen if own or answers[0].changed else f"{chosen} (default)", spread(best), why)
    for verdict in tuned.whole:
        shown.add_row(f"end to end: {verdict.what}", "", "", spread(verdict.interval), f"noise {100 * verdict.floor:.1f}%")
    return shown


def spread(one: Interval | None) -> str:
    """`+4.1% (2.0 to 6.3)`"""
    if one is None or not math.isfinite(one.low):
        return ""
    return f"{100 * one.gain:+.1f}% ({100 * math.expm1(one.low):.1f} to {100 * math.expm1(one.high):.1f})"
