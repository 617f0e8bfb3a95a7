"""Surroundings: the machine as the doctor finds it, with what others do on it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..machine import Machine, cpu_quota, detect, taken_by_others

MEMINFO = Path("/proc/meminfo")
TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Surroundings:
    """machine      as this process may use it
    processors      of the whole computer
    quota           cores' worth of time that control groups grant; None: no limit
    others          cores' worth of time that other processes take; None: not known
    memory          bytes of the whole computer
    """

    machine: Machine
    processors: int
    quota: float | None
    others: float | None
    memory: int


def observe(isa: str | None = None) -> Surroundings:
    """As they are now; takes a third of a second."""
    machine = detect(isa)
    return Surroundings(machine, os.cpu_count() or machine.cores, cpu_quota(), taken_by_others(), _memory() or machine.memory_total)


def turns() -> tuple[int, int] | None:
    """Nanoseconds that the threads of this process had a core, and that they could have run and had none (schedstat of proc(5)); None where the system
    does not tell."""
    ran = waited = 0
    for task in TASKS.iterdir() if TASKS.is_dir() else ():
        try:
            had, lacked, _ = (task / "schedstat").read_text().split()
        except (OSError, ValueError):
            continue  # a thread that has just ended
        ran, waited = ran + int(had), waited + int(lacked)
    return (ran, waited) if ran else None


def _memory() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), None)
