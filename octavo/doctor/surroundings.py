"""Surroundings: the machine as the doctor finds it, with what others do on it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..machine import Machine, cpu_quota, detect

STAT = Path("/proc/stat")
MEMINFO = Path("/proc/meminfo")
TASKS = Path("/proc/self/task")
LOOK = 0.3  # seconds that others are watched
IDLE_FIELDS = (3, 4)  # of the cpu line of /proc/stat: idle, and waiting for a disk (proc(5))


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
    """As they are now; takes LOOK seconds."""
    machine = detect(isa)
    return Surroundings(machine, os.cpu_count() or machine.cores, cpu_quota(), _others(), _memory() or machine.memory_total)


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


def _others() -> float | None:
    """Cores' worth of time taken by others while this process sleeps."""
    before, own, began = _busy(), time.process_time(), time.monotonic()
    time.sleep(LOOK)
    after = _busy()
    if before is None or after is None:
        return None
    passed = time.monotonic() - began
    return max(0.0, (after - before - (time.process_time() - own)) / passed)


def _busy() -> float | None:
    """Seconds that all processors together have worked since the start."""
    try:
        ticks = [int(number) for number in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(tick for place, tick in enumerate(ticks) if place not in IDLE_FIELDS) / os.sysconf("SC_CLK_TCK")


def _memory() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), None)
