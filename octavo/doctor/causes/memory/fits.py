"""Fits: all that holds memory against what there is."""

from __future__ import annotations

from ...case import Case
from ...findings import Disorder
from ...holders import holders
from ...tree import Answer, Cause

FULL = 0.9  # of what is free; the rest is for buffers of a step and the system
DOES_NOT_FIT = Disorder("does_not_fit", "error", "model, cache and what stands beside them need more memory than there is",
                       "the findings beside this one, the largest first")


def look(case: Case) -> Answer:
    found, machine = holders(case), case.surroundings.machine
    case.facts |= {"needs MB": round(found.total / 1e6, 1), "free MB": round(machine.memory_available / 1e6, 1), "runs as": case.plans.report.scheme}
    largest = next(iter(found.parts))
    line = f"{found}; {machine.memory_available / 1e6:.1f} MB are free, the largest part is the {largest}"
    fits = found.total - found.base <= FULL * machine.memory_available
    return Answer(f"{'yes' if fits else 'no'}: {line}", () if fits else (DOES_NOT_FIT(largest, line),))


CAUSE = Cause(10, "does it fit?", look, (DOES_NOT_FIT,))
