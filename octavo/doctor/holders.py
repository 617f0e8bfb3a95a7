"""Holders: what holds the memory of a server, foreseen from the model's shapes before anything is loaded. Bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..cache import PAGE, KVPool
from ..errors import CapacityError

if TYPE_CHECKING:
    from .case import Case


@dataclass(frozen=True)
class Holders:
    """weights, tables, base   of the model and the process (LoadReport.predicted)
    loading    what lives only while weights are read
    needed     key-value cache that users x context fill
    pool       key-value cache that the server will take, by the engine's rule; 0: too little is free, and it would not start
    cached     what finished sequences may keep of it for prompts that begin the same
    original   weights of a second model in memory, 0 where there is none
    """

    weights: int
    tables: int
    base: int
    loading: int
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

    @property
    def brought(self) -> int:
        """The most that the model will add to the process as it is: while it loads, or once it serves."""
        return max(self.total - self.base, self.weights + self.tables + self.loading)

    def share(self, name: str) -> float:
        """Of what the model brings: without the process itself."""
        return self.parts[name] / max(1, self.total - self.base)

    def __str__(self) -> str:
        return " + ".join(f"{name} {size / 1e6:.1f}" for name, size in self.parts.items() if size) + f" = {self.total / 1e6:.1f} MB"


def holders(case: Case) -> Holders:
    """Of the case as it is described. Raises what opening the model, or the original beside it, raises."""
    from ..engine import EngineOptions
    from ..engine.options import SERVED_BATCH
    from ..engine.pages import usually_cached

    plans, said = case.plans, case.complaint
    case.check_context(plans.max_model_len)
    size, model = plans.report.predicted, plans.origin.model
    page = KVPool.bytes_per_page(model.kv_heads, model.head_dims, plans.cache_spec)
    options = EngineOptions(max_batch=said.max_batch or SERVED_BATCH, kv_memory=None if said.kv_memory_mb is None else said.kv_memory_mb * 1_000_000)
    try:  # the pool is made when the model is there
        pages = options.pool_pages(page, plans.max_model_len, case.surroundings.machine.memory_available - size["weights"] - size["tables"])
    except CapacityError:
        pages = 0
    context = min(said.context or plans.max_model_len, plans.max_model_len)
    needed = min(said.users, options.max_batch) * -(-context // PAGE) * page
    cached = min(usually_cached(pages) * page, pages * page - min(needed, pages * page)) if said.prefix_cache else 0
    original = case.foresee(said.against or case.model).report.predicted["weights"] if said.shadow else 0
    return Holders(size["weights"], size["tables"], size["base"], size["temporaries"], needed, pages * page, cached, original)
