"""Fits: all that holds memory, and what loading takes besides, against what there is."""

from __future__ import annotations

from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

FULL = 0.9  # of what is free; the rest is for buffers of a step and the system
DOES_NOT_FIT = Disorder("does_not_fit", "error", "model, cache and what stands beside them need more memory than there is",
                       "the findings beside this one, the largest first")


def look(case: Case) -> Answer:
    found, machine = case.holders, case.surroundings.machine
    case.facts |= {"needs MB": round(found.total / 1e6, 1), "free MB": round(machine.memory_available / 1e6, 1), "runs as": case.plans.report.scheme}
    largest = next(iter(found.parts))
    line = f"{found}; {found.loading / 1e6:.1f} more while it loads; {machine.memory_available / 1e6:.1f} MB are free, the largest part is the {largest}"
    if not found.pool:
        return Answer(f"no: {line}", (DOES_NOT_FIT("key-value cache", f"nothing is left for a key-value cache: {line}"),))
    fits = found.brought <= FULL * machine.memory_available
    return Answer(f"{'yes' if fits else 'no'}: {line}", () if fits else (DOES_NOT_FIT(largest, line),))


CAUSE = Cause(10, "does it fit?", look, (DOES_NOT_FIT,))
