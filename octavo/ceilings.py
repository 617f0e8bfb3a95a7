"""Ceilings: what this machine can do at best, measured once and kept: bytes read a second, and operations a second from registers.

A kernel cannot be faster than the bytes it must read at the read rate, nor than its operations at theirs (the roofline model, Williams, Waterman and
Patterson, 2009). The read rate depends on how much is read again and again, since caches keep what fits, and both depend on the threads.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .machine import Machine

VERSION = 1            # of the file and of what is measured; an older file is measured again
MEBI = 1 << 20
SIZES = tuple(n * MEBI for n in (1, 4, 16, 64, 128, 256, 512))
BUDGET = 1.0           # seconds of measuring, over all threads; filling the memory and starting threads come on top


@dataclass(frozen=True)
class Rates:
    """Of one number of threads: `read` [(working set in bytes, bytes a second)] by ascending size; int8 and float32 operations a second."""

    threads: int
    read: tuple[tuple[int, float], ...]
    ints: float
    floats: float

    def read_rate(self, working_set: float) -> float:
        """Bytes a second for a working set of that size: between two measured sizes by their logarithms."""
        sizes = [math.log(size) for size, _ in self.read]
        return float(np.interp(math.log(max(working_set, 1)), sizes, [rate for _, rate in self.read]))


@dataclass(frozen=True)
class Ceilings:
    """fingerprint: of the machine they were measured on (Machine.fingerprint); rates: by ascending number of threads."""

    fingerprint: str
    isa: str
    rates: tuple[Rates, ...]

    def of(self, threads: int) -> Rates:
        """For a team of `threads`: measured, or in proportion between two measured numbers; more threads than cores are no faster."""
        for low, high in zip(self.rates, self.rates[1:]):
            if low.threads < threads < high.threads:
                part = (threads - low.threads) / (high.threads - low.threads)

                def mix(a: float, b: float, part: float = part) -> float:
                    return a + (b - a) * part

                read = tuple((size, mix(rate, high.read_rate(size))) for size, rate in low.read)
                return Rates(threads, read, mix(low.ints, high.ints), mix(low.floats, high.floats))
        return next((r for r in reversed(self.rates) if r.threads <= threads), self.rates[0])


def ceilings(machine: Machine, folder: Path, *, again: bool = False, note: Callable[[str], None] = lambda text: None) -> Ceilings:
    """Those kept in `folder` for this machine and instruction set, else measured (under 3 s) and kept. again: measure whatever is kept.

    A folder that cannot be written to costs only the next measurement.
    """
    path = folder / "ceilings" / f"{machine.fingerprint}.json"
    kept = None if again else _read(path, machine)
    if kept is None:
        note("measuring what this machine can do")
        kept = measure(machine)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps({"version": VERSION, **asdict(kept)}, indent=1))
            part.replace(path)
        except OSError as error:
            note(f"the measurement could not be kept: {error}")
    return kept


def measure(machine: Machine, *, sizes: Sequence[int] = SIZES, budget: float = BUDGET) -> Ceilings:
    """Measure with 1, 2, 4 ... threads and all cores. Sizes above an eighth of the free memory are left out, but for the smallest."""
    from . import _native

    counts = sorted({1 << i for i in range(machine.cores.bit_length())} | {machine.cores})
    fit = [size for size in sizes if size <= machine.memory_available // 8] or list(sizes[:1])
    each = budget / len(counts) / (len(fit) + 2)
    memory = np.full(fit[-1] + 64, 1, np.uint8)  # ones: what was never written is one page of zeros
    data = memory[-memory.ctypes.data % 64 :]
    rates = []
    for threads in counts:
        team = _native.Team(threads)
        read = tuple((size, float(_native.read_rate(team, machine.isa, data[:size], each))) for size in fit)
        ints, floats = (float(_native.operation_rate(team, machine.isa, kind, each)) for kind in (True, False))
        rates.append(Rates(threads, read, ints, floats))
    return Ceilings(machine.fingerprint, machine.isa, tuple(rates))


def _read(path: Path, machine: Machine) -> Ceilings | None:
    """None when there is none, or it is of another version or damaged: then it is measured again."""
    try:
        found = json.loads(path.read_text())
        if found["version"] != VERSION or found["fingerprint"] != machine.fingerprint or found["isa"] != machine.isa:
            return None
        rates = tuple(Rates(int(r["threads"]), tuple((int(size), float(rate)) for size, rate in r["read"]), float(r["ints"]), float(r["floats"]))
                      for r in found["rates"])
        sound = bool(rates) and all(r.threads > 0 and r.read and min(r.ints, r.floats, *(rate for _, rate in r.read)) > 0 for r in rates)
        return Ceilings(found["fingerprint"], found["isa"], rates) if sound else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
