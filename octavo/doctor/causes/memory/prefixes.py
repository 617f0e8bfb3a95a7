"""Prefixes: pages that finished sequences leave for prompts that begin the same."""

from __future__ import annotations

from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

LARGE = 0.25  # of what the model brings
KEPT = Disorder("prefix_cache_holds", "warning", "finished sequences keep pages for prompts that begin the same, and that is much of the memory",
                "bound the pool (--kv-memory-mb), or keep none, where prompts do not begin the same")


def look(case: Case) -> Answer:
    found = case.holders
    if not case.complaint.prefix_cache:
        return Answer("none are kept")
    line = f"up to {found.cached / 1e6:.1f} MB, {found.share('prefix cache'):.0%}, of a pool of {found.pool / 1e6:.1f} MB"
    tight = found.total - found.base > case.surroundings.machine.memory_available / 2
    return Answer(line, (KEPT("prefix cache", line, case.command(prefix_cache=False)),) if tight and found.share("prefix cache") > LARGE else ())


CAUSE = Cause(60, "do kept prefixes hold it?", look, (KEPT,))
