"""Limit: a container that grants less memory than the machine has."""

from __future__ import annotations

from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

LIMITED = Disorder("memory_limited", "warning", "a control group grants less memory than the machine has, and it is this limit that is met",
                   "raise it (docker run --memory, resources.limits.memory of Kubernetes)")


def look(case: Case) -> Answer:
    around = case.surroundings
    machine = around.machine
    line = f"{machine.memory_total / 1e6:.0f} MB of the machine's {around.memory / 1e6:.0f} MB may be used"
    found = case.holders
    tight = found.total - found.base > machine.memory_available / 2
    if not tight or machine.memory_total > 0.95 * around.memory:
        return Answer(line)
    return Answer(line, (LIMITED("memory.max", f"{line}; {found.total / 1e6:.1f} MB are needed"),))


CAUSE = Cause(20, "is it the machine's memory that ends, or a limit?", look, (LIMITED,))
