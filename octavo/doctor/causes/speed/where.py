"""Where: the parts of a step of decoding: outside the kernels, waiting for other threads, attention, linears, by the marks of the native program.

What would help is tried before it is said: fewer threads, an 8-bit key-value cache.
"""

from __future__ import annotations

import copy

from ....schemes import cache_pairs
from ....spans import OUTSIDE, WAITING, seconds_by_part
from ....workloads import native_program
from ...case import Case
from ...findings import Disorder
from ...race import race
from ...tree import Answer, Cause
from .crowd import crowded

LARGE = 0.4  # of the time
HELPS = 1.05  # times as fast
OUTSIDE_KERNELS = Disorder("time_outside_kernels", "warning", "much of a step is spent outside the kernels: the model is so small that fewer bits cannot help",
                           "more users at a time share that part; judge speed with a larger model")
WAITS = Disorder("threads_wait", "warning", "threads wait for each other for much of a step", "fewer threads for so small a model, or cores of their own")
ATTENDS = Disorder("attention_bound", "warning", "attention to the context takes most of the time, which fewer bits of the weights do not change",
                   "an 8-bit key-value cache, or shorter contexts")


def look(case: Case) -> Answer:
    parts = seconds_by_part(case.loaded, case.steps)
    total = sum(parts.values())
    shares = {name: seconds / total for name, seconds in parts.items()}
    line = ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]) if share >= 0.01)
    line += f"; a step takes {1e6 * total / len(case.steps):.0f} us, mean of {len(case.steps)} steps with {case.users} user{'s' if case.users > 1 else ''}"
    found = []
    if shares.get(OUTSIDE, 0) > LARGE:
        found.append(OUTSIDE_KERNELS("", line))
    if shares.get(WAITING, 0) > LARGE and not crowded(case):  # else the wait is for what others do, which is found already
        found.append(WAITS("", *_fewer_threads(case, line)))
    if shares.get("attention", 0) > LARGE:
        found.append(ATTENDS("", *_smaller_cache(case, line)))
    return Answer(line, tuple(found))


def _fewer_threads(case: Case, line: str) -> tuple[str, str]:
    """Evidence, and the command, if it helps."""
    threads = native_program(case.loaded).threads
    if threads == 1:
        return line, ""
    fewer = max(1, threads // 2)
    found = race(case.loaded, case.loaded.twin(fewer), case.users, case.complaint.context)
    return f"{line}; {threads} threads; with {fewer} it is {found}", case.command(threads=fewer) if found.times > HELPS else ""


def _smaller_cache(case: Case, line: str) -> tuple[str, str]:
    """Evidence, and the command, if it helps."""
    if any(half.quantized for pair in cache_pairs(case.loaded.cache_spec, len(case.loaded.kv_heads)) for half in pair):
        return line, ""
    narrow = copy.copy(case.loaded)
    narrow.cache_spec = case.foresee(case.model, quantization=case.complaint.quantization, kv_cache="int8").cache_spec
    found = race(case.loaded, narrow.twin(native_program(case.loaded).threads), case.users, case.complaint.context)
    return f"{line}; with an 8-bit cache it is {found}", case.command(kv_cache="int8") if found.times > HELPS else ""


CAUSE = Cause(80, "where does the time of a step go?", look, (OUTSIDE_KERNELS, WAITS, ATTENDS), unless=("reference_backend",))
