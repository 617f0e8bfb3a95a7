"""Where: the parts of a step of decoding: outside the kernels, waiting for other threads, attention, linears, by the marks of the native program."""

from __future__ import annotations

from collections import defaultdict

from ....workloads import Timed, native_program
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause
from .crowd import crowded

OUTSIDE, WAITING, ATTENTION = 0.4, 0.4, 0.4  # of the time
OUTSIDE_KERNELS = Disorder("time_outside_kernels", "warning", "much of a step is spent outside the kernels: the model is so small that fewer bits cannot help",
                           "more users at a time share that part; judge speed with a larger model")
WAITS = Disorder("threads_wait", "warning", "threads wait for each other for much of a step", "fewer threads for so small a model, or cores of their own")
ATTENDS = Disorder("attention_bound", "warning", "attention to the context takes most of the time, which fewer bits of the weights do not change",
                   "an 8-bit key-value cache, or shorter contexts")
WAIT = 2  # csrc/trace.h Mark::What


def look(case: Case) -> Answer:
    parts = _parts(case, case.steps)
    total = sum(parts.values())
    shares = {name: seconds / total for name, seconds in parts.items()}
    line = ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]) if share >= 0.01)
    line += f"; a step takes {1e6 * total / len(case.steps):.0f} us, mean of {len(case.steps)} steps with {min(case.complaint.users, 16)} users"
    found = []
    if shares.get("outside kernels", 0) > OUTSIDE:
        found.append(OUTSIDE_KERNELS("", line))
    if shares.get("waiting", 0) > WAITING and not crowded(case.surroundings):  # else the wait is for what others do, which is found already
        threads = native_program(case.loaded).threads
        found.append(WAITS("", f"{line}; {threads} threads", case.command(threads=max(1, threads // 2))))
    if shares.get("attention", 0) > ATTENTION:
        found.append(ATTENDS("", line, case.command(kv_cache="int8")))
    return Answer(line, tuple(found))


def _parts(case: Case, steps: list[Timed]) -> dict[str, float]:
    """Part -> seconds over all steps, means over the members of the team."""
    parts: defaultdict[str, float] = defaultdict(float)
    for step in steps:
        assert step.marks is not None
        entered, left, members = step.marks
        ops = native_program(case.loaded).describe(step.shape.rows, step.shape.logit_rows)
        parts["outside kernels"] += step.seconds - (left - entered) / 1e9
        for marks in members:
            at = marks[0][2]
            for op, what, until in marks[1:]:
                name = "waiting" if what == WAIT else ops[op]["kind"] if op < len(ops) else "largest logits"
                parts[name] += (until - at) / 1e9 / len(members)
                at = until
    return parts


CAUSE = Cause(80, "where does the time of a step go?", look, (OUTSIDE_KERNELS, WAITS, ATTENDS), unless=("reference_backend",))
