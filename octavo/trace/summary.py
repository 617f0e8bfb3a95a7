"""Sums over traced steps: the time of each op, what it achieved, and the time between ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from ..ceilings import Rates
from ..kernels.costs import Cost, op_costs, step_least
from ..spans import spans
from ..workloads import Timed, native_program

if TYPE_CHECKING:
    from ..loading import LoadedModel


@dataclass
class OpRow:
    """All calls of ops with one kind and shape. Times in seconds, means over the members: `calls` has one for each call, from when a member began
    with it until it began with the next op; `waited` is the part of all calls in which it waited for the others."""

    kind: str
    shape: str
    kernel: str
    calls: list[float] = field(default_factory=list)
    waited: float = 0.0
    cost: Cost = field(default_factory=Cost)
    least: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.calls)


@dataclass(frozen=True)
class StepParts:
    """Seconds of one step, which add up to it: the engine's Python before and after the forward, Python and checks around the native program, its
    preparation and start, ops, and the end (largest logits found, team met)."""

    engine: float
    call: float
    start: float
    ops: float
    end: float

    @property
    def total(self) -> float:
        return self.engine + self.call + self.start + self.ops + self.end

    @property
    def outside(self) -> float:
        """Seconds outside native code."""
        return self.engine + self.call


@dataclass
class Summary:
    """What `octavo trace` shows. rows: largest first; cost and least: of a step (least: seconds, by the ceilings)."""

    rows: list[OpRow]
    steps: list[StepParts]
    cost: Cost
    least: float
    threads: int

    def part(self, name: str) -> float:
        """Median over the steps of one of their parts, in seconds."""
        return median(getattr(step, name) for step in self.steps)

    @property
    def waited(self) -> float:
        """Seconds of a step that members waited inside and after ops, mean over steps and members."""
        return sum(row.waited for row in self.rows) / len(self.steps)

    def as_json(self, rates: Rates) -> dict[str, Any]:
        """JSON-able; seconds, bytes, operations a step, and shares of the ceilings."""
        count = len(self.steps)
        return {
            "steps": count, "step_seconds": self.part("total"), "least_seconds": self.least, "share_of_ceiling": self.least / self.part("total"),
            "outside_native_seconds": self.part("outside"), "outside_native_share": self.part("outside") / self.part("total"),
            "waiting_seconds": self.waited,
            "parts": {name: self.part(name) for name in ("engine", "call", "start", "ops", "end")},
            "cost": vars(self.cost),
            "ops": [{
                "kind": row.kind, "shape": row.shape, "kernel": row.kernel, "calls": len(row.calls) / count, "seconds": row.total / count,
                "median_call_seconds": median(row.calls), "share": row.total / sum(step.total for step in self.steps), "waiting_seconds": row.waited / count,
                "bytes": row.cost.bytes / count, "operations": row.cost.operations / count, "gb_per_s": row.cost.bytes / row.total / 1e9,
                "tops": row.cost.operations / row.total / 1e12, "share_of_ceiling": row.least / row.total,
            } for row in self.rows],
        }


def summarize(loaded: LoadedModel, steps: Sequence[Timed], rates: Rates) -> Summary:
    """Of traced steps; cost and least are means over them."""
    rows: dict[tuple[str, str, str], OpRow] = {}
    parts, whole, least = [], Cost(), 0.0
    for step in steps:
        assert step.marks is not None
        entered, left, _ = step.marks
        ops = native_program(loaded).describe(step.shape.rows, step.shape.logit_rows)
        costs = op_costs(ops, step.shape, loaded.cache_spec)
        total = sum(costs, Cost())
        whole, reread = whole + total, total.weights + total.cache
        members = spans(step)
        starts = [[0] * (len(ops) + 1) for _ in members]
        waits = [0] * (len(ops) + 1)
        for member, mine in enumerate(members):
            for span in reversed(mine):
                starts[member][span.op] = span.began
                waits[span.op] += span.ended - span.began if span.what == "wait" else 0
        bounds = [sum(member[op] for member in starts) / len(members) for op in range(len(ops) + 1)]
        for number, (op, cost) in enumerate(zip(ops, costs, strict=True)):
            row = rows.setdefault((op["kind"], op["shape"], op["kernel"]), OpRow(op["kind"], op["shape"], op["kernel"]))
            row.calls.append((bounds[number + 1] - bounds[number]) / 1e9)
            row.waited += waits[number] / 1e9 / len(members)
            row.cost += cost
            row.least += cost.least_seconds(rates, reread)
        least += step_least(costs, rates)
        forward = step.forward_ended - step.forward_began
        parts.append(StepParts((step.ended - step.began - forward) / 1e9, (forward - (left - entered)) / 1e9, (bounds[0] - entered) / 1e9,
                               (bounds[-1] - bounds[0]) / 1e9, (left - bounds[-1]) / 1e9))
    n = len(parts)
    mean = Cost(*(value / n for value in vars(whole).values()))
    return Summary(sorted(rows.values(), key=lambda row: -row.total), parts, mean, least / n, rates.threads)
