"""Threads: fewer than cores leave cores idle."""

from __future__ import annotations

from ....settings import read_settings
from ....workloads import native_program
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

FEW = Disorder("too_few_threads", "error", "fewer threads than cores: the others do nothing", "leave --threads and OCTAVO_THREADS out")
ASKED_FOR_MORE = Disorder("more_threads_than_cores", "info", "more threads were asked for than this process may use cores", "leave --threads out")


def look(case: Case) -> Answer:
    threads, cores = native_program(case.loaded).threads, case.surroundings.machine.cores
    line = f"{threads} threads on {cores} cores"
    if threads < cores:
        command = case.command(threads=None)
        by = "--threads" if case.complaint.threads else "OCTAVO_THREADS" if read_settings().threads else "a policy"
        return Answer(line, (FEW(by, line, command if case.complaint.threads else f"env -u OCTAVO_THREADS {command}"),))
    if (case.complaint.threads or 0) > cores:
        return Answer(line, (ASKED_FOR_MORE("--threads", f"{case.complaint.threads} asked for, {line}", case.command(threads=None)),))
    return Answer(line)


CAUSE = Cause(40, "do threads fit the cores?", look, (FEW, ASKED_FOR_MORE), unless=("reference_backend",))
