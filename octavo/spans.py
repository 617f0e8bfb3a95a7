"""Spans: the marks of the native program as what each member of the team did, from when to when, and sums of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .workloads import Timed, native_program

if TYPE_CHECKING:
    from .loading import LoadedModel

BEGIN, WORK, WAIT = 0, 1, 2  # csrc/trace.h Mark::What
OUTSIDE, WAITING, LOGITS = "outside kernels", "waiting", "largest logits"


@dataclass(frozen=True)
class Span:
    """A member worked on op number `op`, or waited in it for the others, in perf_counter_ns. The number of ops stands for the search of the largest logits."""

    member: int
    op: int
    what: Literal["work", "wait"]
    began: int
    ended: int


def spans(step: Timed) -> list[list[Span]]:
    """Of each member, in order and without holes from its first mark to its last."""
    assert step.marks is not None
    found = []
    for member, marks in enumerate(step.marks[2]):
        mine, at = [], marks[0][2]
        for op, what, until in marks[1:]:
            mine.append(Span(member, op, "work" if what == WORK else "wait", at, until))
            at = until
        found.append(mine)
    return found


def seconds_by_part(loaded: LoadedModel, steps: Sequence[Timed]) -> dict[str, float]:
    """Where the time of traced steps went, in seconds over all of them, which add up to it: work by kind of op (means over the members of the team), OUTSIDE
    the spans (Python, checks, starting and gathering the team), WAITING for other members, LOGITS for the search of the largest."""
    parts: defaultdict[str, float] = defaultdict(float)
    for step in steps:
        ops = native_program(loaded).describe(step.shape.rows, step.shape.logit_rows)
        members, inside = spans(step), 0.0
        for span in (span for mine in members for span in mine):
            seconds = (span.ended - span.began) / 1e9 / len(members)
            inside += seconds
            parts[WAITING if span.what == "wait" else ops[span.op]["kind"] if span.op < len(ops) else LOGITS] += seconds
        parts[OUTSIDE] += step.seconds - inside
    return dict(parts)
