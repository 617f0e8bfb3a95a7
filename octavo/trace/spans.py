"""From marks to spans: what each member of the team did, from when to when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..workloads import Timed

BEGIN, WORK, WAIT = 0, 1, 2  # csrc/trace.h Mark::What


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
