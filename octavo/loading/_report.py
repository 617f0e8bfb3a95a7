"""LoadReport: what loading is going to do, and what it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Runs:
    """Weights that are asked for in one precision and run in one way. asked: as the plan, or the file, has them; kept: how they lie in memory (asked's
    numbers rounded to bf16 where no kernel reads asked); activation: their inputs; names of the grammar. kernel: the backend. bytes: in memory."""

    asked: str
    kept: str
    activation: str
    kernel: str
    tensors: int
    bytes: int

    @property
    def runs_as(self) -> str:
        return f"W{self.kept}A{self.activation}"

    def __str__(self) -> str:
        how = f"run as {self.runs_as}" + (" (emulated)" if self.kept != self.asked and self.asked not in ("fp16", "32") else "")
        return f"{self.tensors} weight{'s' if self.tensors > 1 else ''} of W{self.asked} {how} on {self.kernel}, {self.bytes / 1e6:.0f} MB"


@dataclass
class LoadReport:
    """Known before the first weight is read: everything down to `notes`. Sizes in bytes.

    predicted    parts of the predicted peak of the process while loading: base (what it holds before the first weight), weights, tables
                 (rotary angles, norms, biases), temporaries (in flight at once, at most)
    kv_bytes_per_token   what a token of context needs in the key-value cache, which is not part of the peak
    runs         what really runs, by class of weights
    notes        what is not as asked: emulated formats, files set aside, a cache that could not be used
    copy         folder of the copy in the cache, "" where there is none
    policy       the measured policy that it runs by, in words; "": the defaults
    cache_choice what `--kv-cache auto` chose and why, which is also a note; "": it was not asked
    cache_search the same in numbers (see CacheChoice); {}: it was not asked
    """

    source: str
    codec: str
    model_type: str
    scheme: str
    reason: str
    backend: str
    cache_format: str
    stored_bytes: int
    weight_bytes: int
    predicted: dict[str, int]
    kv_bytes_per_token: int
    runs: list[Runs] = field(default_factory=list)
    cache_hit: bool = False
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    measured_peak: int = 0
    copy: str = ""
    policy: str = ""
    cache_choice: str = ""
    cache_search: dict[str, Any] = field(default_factory=dict)

    @property
    def predicted_peak(self) -> int:
        """Bytes of the whole process at its largest while loading."""
        return sum(self.predicted.values())

    def lines(self) -> list[str]:
        """For people, before loading begins."""
        parts = " + ".join(f"{name} {size / 1e6:.0f}" for name, size in self.predicted.items())
        return [
            f"{self.source} ({self.model_type}, {self.codec}, {self.stored_bytes / 1e6:.0f} MB)",
            f"precision {self.scheme}: {self.reason}",
            f"predicted peak {self.predicted_peak / 1e6:.0f} MB = {parts}; key-value cache {self.kv_bytes_per_token / 1e3:.1f} kB a token",
            *map(str, self.runs),
            *(f"note: {note}" for note in self.notes),
        ]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "runs": [vars(one) for one in self.runs], "predicted_peak": self.predicted_peak}


@dataclass(frozen=True)
class Progress:
    """`done` of `total` bytes of weights are in memory; `tensor` is the next one ("" at the end). The first call comes before any is read."""

    report: LoadReport
    done: int
    total: int
    tensor: str


OnProgress = Callable[[Progress], None]
