"""Crowd: what other processes take of the cores. A team of threads waits for its slowest member, so one busy core slows all."""

from __future__ import annotations

from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

MOST = 0.25  # of a core that others may take per core of this process, where no idle cores are left for them
YIELDED = 0.05  # of the time without a core that does no harm
CROWDED = Disorder("other_load", "error", "other processes use the cores: threads that compute together wait for the one that was put aside",
                   "stop the others, or give this process cores of its own (taskset, cpuset) and as many threads")


def look(case: Case) -> Answer:
    around = case.surroundings
    if around.others is None:
        raise NotAskedError("this system does not tell")
    cores, idle = around.machine.cores, around.processors - around.others
    line = f"others take {around.others:.2f} of {around.processors} processors, {cores} are to be used here"
    if case.lacked is not None:
        line += f"; threads that could run had no core for {case.lacked:.0%} of the time"
    if not crowded(case):
        return Answer(line)
    return Answer(line, (CROWDED("processors", line, case.command(threads=max(1, int(idle)))),))


def crowded(case: Case) -> bool:
    """Whether others take cores that this process would use, and do not yield them (as those of a lower priority do)."""
    around = case.surroundings
    taken, cores = around.others or 0.0, around.machine.cores
    return taken / cores > MOST and around.processors - taken < cores and (case.lacked is None or case.lacked > YIELDED)


CAUSE = Cause(60, "who else uses the cores?", look, (CROWDED,))
