"""Machine: what this computer offers: CPU features, cores and memory as a container may limit them."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
DEVICES = Path("/dev")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
STAT = Path("/proc/stat")
IDLE_FIELDS = (3, 4)  # of the cpu line of /proc/stat: idle, and waiting for a disk (proc(5))


@dataclass(frozen=True)
class Gpu:
    """name as its driver has it; capability: compute capability (CUDA C++ Programming Guide, appendix "Compute Capabilities"); memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory_total: int
    memory_free: int


@dataclass(frozen=True)
class Machine:
    """features of the CPU that kernels care about; isa: the instruction set whose kernels run; cores this process may use (affinity and cgroup
    quota); memory in bytes (the smaller of the machine's and the cgroup's); gpus: where they were asked for (`find_gpus`); fingerprint: names this kind of
    machine."""

    features: frozenset[str]
    isas: tuple[str, ...]
    isa: str
    cores: int
    memory_total: int
    memory_available: int
    cpu: str
    gpus: tuple[Gpu, ...] = ()

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


def shows_gpu() -> bool:
    """Whether the system shows an NVIDIA GPU. Asks no library: a look into /dev."""
    return any(DEVICES.glob("nvidia[0-9]*")) or (DEVICES / "dxg").exists()  # dxg: Windows' Linux


def find_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that torch can use, in its order; none without torch. Imports torch: for those who want a device."""
    try:
        import torch
    except ImportError:
        return ()
    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        found.append(Gpu(torch.cuda.get_device_name(index), (major, minor), int(total), int(free)))
    return tuple(found)


def gpu_driver() -> str:
    """Version of the NVIDIA driver, "" where none tells."""
    found = re.search(r"Kernel Module\D*(\d+(?:\.\d+)+)", _read(NVIDIA_DRIVER))
    return found.group(1) if found else ""


def available_memory() -> int:
    """Bytes that are free for this process, as `detect` says, without asking for the rest."""
    return _memory()[1]


def give_back_freed() -> None:
    """Hands memory that was freed, but that the C library keeps for later, back to the system; nothing where the library has no such call (glibc has)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def last_level_cache() -> int:
    """Bytes of the largest cache of a core; 32 MiB where the system does not tell."""
    sizes = [_read(folder / "size").strip() for folder in CPU_CACHES.glob("index*")]
    found = [int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes if size[:-1].isdigit() and size[-1] in "KM"]
    return max(found, default=32 << 20)


def _cores() -> int:
    """Cores this process may run on, a cgroup's quota rounded up; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores if (quota := cpu_quota()) is None else min(cores, math.ceil(quota)))


def cpu_quota() -> float | None:
    """Cores' worth of time that control groups grant this process; None where there is no limit."""
    found = []
    for folder in _cgroups(""):
        quota = _read(folder / "cpu.max").split()
        if len(quota) == 2 and all(part.isdigit() for part in quota) and int(quota[1]) > 0:
            found.append(int(quota[0]) / int(quota[1]))
    for folder in _cgroups("cpu"):
        period, limit = _number(folder / "cpu.cfs_period_us"), _number(folder / "cpu.cfs_quota_us")
        if period and limit and limit > 0:
            found.append(limit / period)
    return min(found, default=None)


def taken_by_others(look: float = 0.3) -> float | None:
    """Cores' worth of time that other processes take, watched for `look` seconds while this one sleeps; None where the system does not tell. What the
    hypervisor gives to other machines counts: it is taken as well."""
    before, own, began = _worked(), time.process_time(), time.monotonic()
    time.sleep(look)
    after = _worked()
    if before is None or after is None:
        return None
    passed = time.monotonic() - began
    return max(0.0, (after - before - (time.process_time() - own)) / passed)


def _worked() -> float | None:
    """Seconds that all processors together have worked since the start."""
    try:
        ticks = [int(number) for number in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(tick for place, tick in enumerate(ticks) if place not in IDLE_FIELDS) / os.sysconf("SC_CLK_TCK")


def _memory() -> tuple[int, int]:
    """(total, available) bytes. Cached files count as available, as they do in MemAvailable: the kernel drops them on demand."""
    fields = {}
    for line in _read(Path("/proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdigit():
            fields[name] = int(number[0]) * 1024
    total = fields.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = fields.get("MemAvailable", total)
    machine = total
    for controller, limit_file, used_file, prefix in (("", "memory.max", "memory.current", ""),
                                                      ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")):
        for folder in _cgroups(controller):
            limit = _number(folder / limit_file)
            if limit is None or limit >= machine:
                continue
            stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
            cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            used = max(0, (_number(folder / used_file) or 0) - cached)
            total, available = min(total, limit), min(available, max(0, limit - used))
    return total, available


def _cgroups(controller: str) -> list[Path]:
    """The folders whose limits bind this process, innermost first: its own control group and those around it. controller: "" for version 2, else
    the name in version 1. In a container the mount often starts at the container's group, whatever path the kernel names: missing ones are skipped."""
    root = CGROUP / controller
    for line in _read(OWN_CGROUP).splitlines():
        _, names, path = (line.split(":", 2) + ["", ""])[:3]
        if controller in names.split(",") and ".." not in Path(path).parts:
            own = Path(path.lstrip("/"))
            return [root / part for part in (own, *own.parents) if (root / part).is_dir()]
    return [root]


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
