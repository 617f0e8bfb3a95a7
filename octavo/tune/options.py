"""What a user can set about a search."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError

GPU_BUDGET = 600.0  # seconds where candidates are compiled, a few seconds each
CACHE_FORMATS = ("bf16", "int8", "fp32", "fp8", "int4", "K8V4")


@dataclass(frozen=True)
class TuneOptions:
    """budget            seconds
    max_batch, max_batch_tokens   what the server uses when no policy says otherwise
    allow_kv          formats of the key-value cache that may be chosen: they change the numbers, so only what the user names is tried
    fixed_threads     the user named the number of threads: it is not searched
    longest_step      seconds that others may have to wait for a token because of a larger chunk or batch
    against_itself    every question gets the default as its only candidate; nothing is written
    """

    budget: float = 130.0
    max_batch: int = 128
    max_batch_tokens: int = 512
    allow_kv: tuple[str, ...] = ()
    fixed_threads: bool = False
    longest_step: float = 0.5
    against_itself: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("budget", "longest_step"):
            if not getattr(self, name) > 0:
                raise UsageError(f"must be above 0, not {getattr(self, name)}", where=f"--{name.replace('_', '-')}")
        for name in self.allow_kv:
            if name not in CACHE_FORMATS:
                raise UsageError(f"the cache has no format {name!r}", where="--allow-kv", remedy=f"known: {', '.join(CACHE_FORMATS)}")
