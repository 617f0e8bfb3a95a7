"""Machine: what this computer offers: CPU features, cores and memory as a container may limit them."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """features of the CPU that kernels care about; isa: the instruction set whose kernels run; cores this process may use (affinity and cgroup
    quota); memory in bytes (the smaller of the machine's and the cgroup's); gpus: none yet; fingerprint: names this kind of machine."""

    features: frozenset[str]
    isas: tuple[str, ...]
    isa: str
    cores: int
    memory_total: int
    memory_available: int
    cpu: str
    gpus: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hex digest of what a measured policy depends on: processor, features, cores, instruction set."""
        text = "|".join([self.cpu, ",".join(sorted(self.features)), str(self.cores), self.isa])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def detect(isa: str | None = None) -> Machine:
    """This machine. `isa` forces an instruction set; UsageError when its kernels cannot run here."""
    from . import _native

    isas = tuple(_native.available_isas())
    if isa and isa not in isas:
        raise UsageError(f"the {isa} kernels cannot run on this CPU or are not in this build", where="--isa", remedy=f"possible: {', '.join(isas)}")
    total, available = _memory()
    return Machine(frozenset(_native.cpu_features()), isas, isa or isas[0], _cores(), total, available, _cpu_name())


def _cores() -> int:
    """Cores this process may run on, a cgroup's quota rounded up; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        return max(1, min(cores, -(-int(quota[0]) // int(quota[1]))))
    period, limit = _number(CGROUP / "cpu/cpu.cfs_period_us"), _number(CGROUP / "cpu/cpu.cfs_quota_us")
    if period and limit and limit > 0:
        return max(1, min(cores, -(-limit // period)))
    return max(1, cores)


def _memory() -> tuple[int, int]:
    """(total, available) bytes."""
    fields = {}
    for line in _read(Path("/proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdigit():
            fields[name] = int(number[0]) * 1024
    total = fields.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = fields.get("MemAvailable", total)
    pairs = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit_file, used_file in pairs:
        limit, used = _number(CGROUP / limit_file), _number(CGROUP / used_file)
        if limit is not None and limit < total:
            total, available = limit, min(available, max(0, limit - (used or 0)))
    return total, available


def _cpu_name() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None
