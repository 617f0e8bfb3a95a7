"""Limits: what control groups (containers) and affinity take from the process."""

from __future__ import annotations

from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

WITHHELD = Disorder("cores_withheld", "warning", "a container or affinity grants this process fewer cores than the machine has",
                    "grant more (docker run --cpus, resources.limits.cpu of Kubernetes, taskset)")
PART_OF_A_CORE = Disorder("quota_not_whole", "error",
                          "the control group grants no whole number of cores: threads are stopped in mid-step and the others wait for them",
                          "grant whole cores (docker run --cpus=2), or run as many threads as it grants whole cores")
PART = 0.15  # of a core


def look(case: Case) -> Answer:
    around = case.surroundings
    quota = "" if around.quota is None else f", a quota of {around.quota:g}"
    line = f"{around.machine.cores} of {around.processors} processors{quota}"
    if around.quota is not None and around.quota < around.processors and abs(around.quota - round(around.quota)) > PART:
        whole = max(1, int(around.quota))
        return Answer(line, (PART_OF_A_CORE("cpu.max", f"{line}; {around.machine.cores} threads run", case.command(threads=whole)),))
    if around.machine.cores < around.processors:
        return Answer(line, (WITHHELD("cpu.max" if around.quota is not None else "affinity", line),))
    return Answer(line)


CAUSE = Cause(50, "how much of the machine may it use?", look, (PART_OF_A_CORE, WITHHELD))
