"""Complaint: what the user says about a model that disappoints: how it is run, what it was made of, what it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError


@dataclass(frozen=True)
class Complaint:
    """How the model is run, as the options of `octavo serve` say it, and what there is to compare it with.

    against       the original that the model was made of
    data          the calibration text; traffic: what users really ask, a .jsonl file
    users         sequences at once; context: tokens of each, prompt and answer (None: as many as the model takes)
    max_batch     sequences that the server computes together
    shadow        the server holds the original beside the model (--shadow-share, --compare)
    policy_dir    where `octavo tune` put its policies

    Raises UsageError for numbers below 1.
    """

    quantization: str | None = None
    kv_cache: str | None = None
    backend: str = "native"
    threads: int | None = None
    isa: str | None = None
    max_model_len: int | None = None
    kv_memory_mb: int | None = None
    max_batch: int | None = None
    prefix_cache: bool = True
    cache: bool = True
    cache_dir: Path | None = None
    against: str | None = None
    data: Path | None = None
    traffic: Path | None = None
    users: int = 1
    context: int | None = None
    shadow: bool = False
    policy_dir: Path | None = None

    def __post_init__(self) -> None:
        for name in ("threads", "max_model_len", "kv_memory_mb", "max_batch", "users", "context"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"must be above 0, not {value}", where=f"--{name.replace('_', '-')}")


RUNS = frozenset({"quantization", "kv_cache", "backend", "threads", "isa", "max_model_len", "cache", "cache_dir"})
"""What says how a model is loaded."""
