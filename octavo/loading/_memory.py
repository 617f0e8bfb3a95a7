"""Memory of this process, measured and foreseen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..checkpoints import Checkpoint
from ..errors import CapacityError
from ..layers import Table, Wanted
from ._assign import Job
from ._stream import temporary_bytes

STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return _status("VmRSS")


def peak() -> int:
    """The most it ever held."""
    return _status("VmHWM")


def predict(checkpoint: Checkpoint, jobs: Iterable[Job], wanted: Mapping[str, Wanted], tables: Mapping[str, Table]) -> dict[str, int]:
    """Parts of the peak of loading, see LoadReport.predicted. Measures what the process holds now."""
    jobs = list(jobs)
    small = sum(4 * math.prod(want.shape) for want in wanted.values() if not want.uses)
    return {
        "base": resident(),
        "weights": sum(job.nbytes for job in jobs),
        "tables": small + sum(4 * math.prod(table.shape) for table in tables.values()),
        "temporaries": max((temporary_bytes(job, checkpoint.tensors[job.stored]) for job in jobs), default=0),
    }


def check_fits(predicted: Mapping[str, int], available: int, least_cache: int) -> None:
    """Raises CapacityError with the numbers when what loading adds to the process, and a cache of two pages, exceed the memory there is."""
    needed = sum(size for name, size in predicted.items() if name != "base") + least_cache
    if needed > available:
        parts = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in predicted.items() if name != "base")
        raise CapacityError(f"loading needs {needed / 1e6:.0f} MB ({parts}, cache {least_cache / 1e6:.1f}), {available / 1e6:.0f} MB are available",
                            where="memory", remedy="use fewer bits (--quantization 4bit), a shorter --max-model-len, or a smaller model")


def _status(field: str) -> int:
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # systems without /proc tell the peak only
    import sys

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
