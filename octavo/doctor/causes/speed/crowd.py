"""Crowd: what other processes take of the cores. A team of threads waits for its slowest member, so one busy core slows all."""

from __future__ import annotations

from ...case import Case
from ...findings import Disorder
from ...surroundings import Surroundings
from ...tree import Answer, Cause, NotAskedError

MOST = 0.25  # of a core that others may take per core of this process, where no idle cores are left for them
CROWDED = Disorder("other_load", "error", "other processes use the cores: threads that compute together wait for the one that was put aside",
                   "stop the others, or give this process cores of its own (taskset, cpuset) and as many threads")


def look(case: Case) -> Answer:
    around = case.surroundings
    if around.others is None:
        raise NotAskedError("this system does not tell")
    cores, idle = around.machine.cores, around.processors - around.others
    line = f"others take {around.others:.2f} of {around.processors} processors, {cores} are to be used here"
    if not crowded(around):
        return Answer(line)
    return Answer(line, (CROWDED("processors", line, case.command(threads=max(1, int(idle)))),))


def crowded(around: Surroundings) -> bool:
    """Whether others take cores that this process would use."""
    taken, cores = around.others or 0.0, around.machine.cores
    return taken / cores > MOST and around.processors - taken < cores


CAUSE = Cause(60, "who else uses the cores?", look, (CROWDED,))
