"""What an operator can set about the engine."""

from __future__ import annotations

from dataclasses import dataclass

from ..cache import PAGE
from ..errors import CapacityError, UsageError

USUAL_KV_MEMORY = 1 << 30  # of a server that was told nothing: a hundred chats of a small model
SERVED_BATCH, SERVED_ROWS = 128, 512  # max_batch and max_batch_tokens of `octavo serve`, where neither the user nor a policy says
BURST, GPU_BURST = 0.03, 0.05         # seconds
GPU_BATCH, GPU_ROWS = 256, 2048       # the same on a GPU, which is idle with fewer rows


@dataclass(frozen=True)
class EngineOptions:
    """Limits of the engine.

    max_batch         sequences computed together; more wait in the queue
    max_batch_tokens  rows of one step: decoded tokens first, the rest goes to prompt chunks. Larger: faster prompts, longer gaps
                      between the tokens of the others
    max_queue         choices that may wait; one more is refused with QueueFullError
    max_model_len     longest prompt + answer in tokens; None: the model's own
    kv_memory         bytes for the key-value cache; None: 1 GiB, or two sequences of full length if they need more, and at most a quarter
                      of the memory that is free; on a GPU as much as max_batch sequences can use and gpu_memory_share leaves
    kv_pages          the same in pages; wins over kv_memory
    prefix_cache      keep the pages of finished sequences and reuse them for prompts that begin the same
    cached_pages      most free pages kept for reuse while untouched pages are left; None: a quarter of all. Bounds how much memory an
                      idle cache holds
    request_timeout   seconds from submission to the last token for requests that name no timeout; None: no limit
    max_choices       largest `n` of a request
    gpu_memory_share  part of a GPU's memory that weights, cache and all other programs there may take together; the rest is for activations and captured
                      steps
    burst_seconds     steps that only decode may be computed in bursts that take about as long as this; their tokens are handed out together (on a
                      GPU one by one, while it computes the next). 0: no bursts; None: 30 ms, on a GPU 50
    """

    max_batch: int = 64
    max_batch_tokens: int = 512
    max_queue: int = 512
    max_model_len: int | None = None
    kv_memory: int | None = None
    kv_pages: int | None = None
    prefix_cache: bool = True
    cached_pages: int | None = None
    request_timeout: float | None = None
    max_choices: int = 16
    burst_seconds: float | None = None
    gpu_memory_share: float = 0.9

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_batch_tokens", "max_queue", "max_model_len", "kv_memory", "kv_pages", "request_timeout", "max_choices"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"must be above 0, not {value}", where=name)
        if self.burst_seconds is not None and not 0 <= self.burst_seconds <= 1:
            raise UsageError(f"must be 0 to 1 second, not {self.burst_seconds}", where="burst_seconds")
        if not 0 < self.gpu_memory_share <= 1:
            raise UsageError(f"must be above 0 and at most 1, not {self.gpu_memory_share}", where="gpu_memory_share", remedy="such as 0.9")
        if self.cached_pages is not None and self.cached_pages < 0:
            raise UsageError(f"must not be negative, not {self.cached_pages}", where="cached_pages")

    def burst(self, on_gpu: bool) -> float:
        """Seconds of a burst."""
        return self.burst_seconds if self.burst_seconds is not None else GPU_BURST if on_gpu else BURST

    def pool_pages(self, page_bytes: int, longest: int, available: int | None = None, on_device: tuple[int, int] | None = None) -> int:
        """Pages of the key-value cache, by the rule of `kv_memory` and `kv_pages`: page_bytes each, sequences of at most `longest` tokens, `available`
        bytes of free memory (None: as many as are free now); on_device: what a GPU has free, and all it has, where the cache lies there. Raises
        CapacityError when there is no room for two."""
        if self.kv_pages is not None:
            return self.kv_pages
        full = -(-longest // PAGE)
        if self.kv_memory is not None:
            pages = min(self.kv_memory // page_bytes, self.max_batch * full)
        elif on_device is not None:
            free, total = on_device
            room = min(free, int(self.gpu_memory_share * total) - (total - free))
            pages = min(max(room, 0) // page_bytes, self.max_batch * full)
        else:
            if available is None:
                from ..machine import detect

                available = detect().memory_available
            pages = min(max(USUAL_KV_MEMORY // page_bytes, 2 * full), self.max_batch * full, max(available, 0) // 4 // page_bytes)
        if pages < 2:
            raise CapacityError(f"the key-value cache has room for {pages} pages of {page_bytes} bytes, at least 2 are needed",
                                where="kv_memory", remedy="give it more memory or use an 8-bit cache (C8)")
        return int(pages)


def served_limits(on_gpu: bool) -> tuple[int, int]:
    """(max_batch, max_batch_tokens) of a server, where neither the user nor a policy says."""
    return (GPU_BATCH, GPU_ROWS) if on_gpu else (SERVED_BATCH, SERVED_ROWS)
