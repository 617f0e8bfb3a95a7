"""Holders: what holds the memory of a server, foreseen from the model's shapes before anything is loaded. Bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..cache import PAGE
from ..errors import OctavoError
from .case import Case

USUAL_POOL = 1 << 30  # of a server that was told nothing (engine/engine.py)
SAME_TIME = 128       # sequences computed together at most, of such a server


@dataclass(frozen=True)
class Holders:
    """weights, tables, base   of the model and the process (LoadReport.predicted)
    needed     key-value cache that users x context fill
    pool       key-value cache that the server will take: as it was told, or by its rule
    cached     what finished sequences may keep of it for prompts that begin the same
    original   weights of a second model in memory, 0 where there is none
    """

    weights: int
    tables: int
    base: int
    needed: int
    pool: int
    cached: int
    original: int

    @cached_property
    def parts(self) -> dict[str, int]:
        """By name, the largest first."""
        parts = {"weights": self.weights, "key-value cache": min(self.needed, self.pool), "prefix cache": self.cached, "original": self.original,
                 "process": self.base, "tables": self.tables}
        return dict(sorted(parts.items(), key=lambda item: -item[1]))

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def share(self, name: str) -> float:
        """Of what the model brings: without the process itself."""
        return self.parts[name] / max(1, self.total - self.base)

    def __str__(self) -> str:
        return " + ".join(f"{name} {size / 1e6:.1f}" for name, size in self.parts.items() if size) + f" = {self.total / 1e6:.1f} MB"


def holders(case: Case) -> Holders:
    """Of the case as it is described. Raises what opening the model raises."""
    plans, said = case.plans, case.complaint
    report, each = plans.report, plans.report.kv_bytes_per_token
    length = plans.max_model_len
    context = min(said.context or length, length)
    needed = said.users * -(-context // PAGE) * PAGE * each
    full = -(-length // PAGE) * PAGE * each
    most = SAME_TIME * full
    told = said.kv_memory_mb
    if told is not None:
        pool = min(told * 1_000_000, most)
    else:
        pool = min(max(USUAL_POOL, 2 * full), most, case.surroundings.machine.memory_available // 4)
    cached = min(pool // 4, pool - min(needed, pool)) if said.prefix_cache else 0
    return Holders(report.predicted["weights"], report.predicted["tables"], report.predicted["base"], needed, pool, cached, _original(case))


def _original(case: Case) -> int:
    if not case.complaint.shadow:
        return 0
    try:
        return case.foresee(case.complaint.against or case.model).report.predicted["weights"]
    except OctavoError:
        return 0
