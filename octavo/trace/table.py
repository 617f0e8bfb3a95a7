"""The summary as a table on the terminal."""

from __future__ import annotations

import os
from statistics import median

from ..ceilings import Rates
from .summary import Summary

CROWDED = 0.3  # of the time; a team alone on its cores waits less
NAMES = {"engine": "engine: scheduling, sampling, text", "call": "call: checks, arrays", "start": "start: buffers, waking the team",
         "ops": "ops", "end": "end: the largest logits"}


def show(summary: Summary, rates: Rates) -> None:
    """Print: one line per op, then where the rest of the step went. Times in microseconds."""
    from rich.console import Console
    from rich.table import Table

    count = len(summary.steps)
    step = summary.part("total")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width of its own
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("op", "shape", "kernel"):
        table.add_column(title, no_wrap=True)
    for title in ("calls", "us", "us a call", "share", "waiting", "MB", "GB/s", "GOPS", "of ceiling"):
        table.add_column(title, justify="right", no_wrap=True)
    everything = sum(part.total for part in summary.steps)
    for row in summary.rows:
        table.add_row(
            row.kind, row.shape, row.kernel, f"{len(row.calls) / count:.0f}", f"{1e6 * row.total / count:.0f}", f"{1e6 * median(row.calls):.1f}",
            f"{row.total / everything:.1%}", f"{row.waited / row.total:.0%}", f"{row.cost.bytes / count / 1e6:.2f}",
            f"{row.cost.bytes / row.total / 1e9:.1f}", f"{row.cost.operations / row.total / 1e9:.0f}", f"{row.least / row.total:.0%}")
    console.print(table)
    print()
    cost = summary.cost
    reread = cost.weights + cost.cache
    print(f"a step: {1e6 * step:.0f} us (median of {count}); at the ceilings {1e6 * summary.least:.0f} us, {summary.least / step:.0%}: weights "
          f"{cost.weights / 1e6:.1f} MB, cache {cost.cache / 1e6:.1f} MB, {cost.ints / 1e9:.2f} G int and {cost.floats / 1e9:.2f} G float operations")
    print(f"ceilings, {rates.threads} threads: {rates.read_rate(reread) / 1e9:.1f} GB/s for that much, {rates.ints / 1e12:.2f} TOPS int8, "
          f"{rates.floats / 1e12:.2f} TOPS float32")
    for part, name in NAMES.items():
        seconds = summary.part(part)
        print(f"  {name:<38}{1e6 * seconds:>9.0f} us {seconds / step:>7.1%}")
    print(f"  {'of ops: members waiting for others':<38}{1e6 * summary.waited:>9.0f} us {summary.waited * count / everything:>7.1%}")
    print(f"  {'outside native code':<38}{1e6 * summary.part('outside'):>9.0f} us {summary.part('outside') / step:>7.1%}")
    if summary.waited * count > CROWDED * everything:
        print(f"members waited {summary.waited * count / everything:.0%} of the time: other processes may be using the cores "
              f"(load {os.getloadavg()[0]:.1f}), and the times above are theirs as well")
