"""Chrome's trace format (the JSON object form of "Trace Event Format"), which chrome://tracing and ui.perfetto.dev open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..kernels.costs import op_costs
from ..spans import Span, spans
from ..workloads import Timed, native_program

if TYPE_CHECKING:
    from ..loading import LoadedModel

PROCESS = 1
ENGINE = 0  # thread id of the engine's line; members of the team follow


def chrome_trace(loaded: LoadedModel, steps: Sequence[Timed]) -> dict[str, Any]:
    """Complete events in microseconds from the first step on: steps > forwards > native on the engine's line; ops > waits on a line per member,
    and between ops the wait for the others."""
    zero = steps[0].began
    events: list[dict[str, Any]] = [_name("process_name", 0, loaded.name), _name("thread_name", ENGINE, "engine")]

    def put(thread: int, name: str, began: int, ended: int, **args: Any) -> None:
        events.append({"ph": "X", "pid": PROCESS, "tid": thread, "name": name, "ts": (began - zero) / 1e3, "dur": (ended - began) / 1e3, "args": args})

    for number, step in enumerate(steps):
        assert step.marks is not None
        entered, left, members = step.marks
        if number == 0:
            events += [_name("thread_name", ENGINE + 1 + member, f"member {member}") for member in range(len(members))]
        shape = step.shape
        put(ENGINE, "step", step.began, step.ended, rows=shape.rows, sequences=len(shape.counts), longest=max(shape.lengths))
        put(ENGINE, "forward", step.forward_began, step.forward_ended)
        put(ENGINE, "native", entered, left)
        ops = native_program(loaded).describe(shape.rows, shape.logit_rows)
        costs = op_costs(ops, shape, loaded.cache_spec)
        for member, mine in enumerate(spans(step)):
            for group in _by_op(mine):
                op, thread = group[0].op, ENGINE + 1 + member
                inner, last = (group[:-1], group[-1]) if group[-1].what == "wait" else (group, None)
                if op == len(ops):
                    put(thread, "largest logits", inner[0].began, inner[-1].ended)
                else:
                    known, cost = ops[op], costs[op]
                    put(thread, known["kind"], inner[0].began, inner[-1].ended, op=op, shape=known["shape"], kernel=known["kernel"],
                        bytes=cost.bytes, operations=cost.operations)
                for span in inner:
                    if span.what == "wait":
                        put(thread, "wait", span.began, span.ended, op=op)
                if last is not None:
                    put(thread, "wait", last.began, last.ended, op=op)
    return {"displayTimeUnit": "ns", "traceEvents": events}


def _by_op(mine: Sequence[Span]) -> list[list[Span]]:
    groups: list[list[Span]] = []
    for span in mine:
        if not groups or groups[-1][-1].op != span.op:
            groups.append([])
        groups[-1].append(span)
    return groups


def _name(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": PROCESS, "tid": thread, "name": what, "args": {"name": name}}
