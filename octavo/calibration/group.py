"""Group: linears that read the same input, and where that input comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .observers import Observer
from .statistics import Statistics

if TYPE_CHECKING:
    from .rows import Matrix, Node, RowsOps, Vector


@dataclass(frozen=True)
class Source:
    """What an input was computed from, where a factor per channel can be moved into it without changing the model (SmoothQuant, AWQ).

    norm        `name` is the gain: dividing (gain + offset) by a factor divides the channel
    attention   `name` is the value projection: input channel (head, i) comes from its row (head // share, i), where `share` query heads read
                one key-value head; factors must be equal among those
    gate        `name` is the weight whose rows are multiplied by the activated gate
    """

    kind: Literal["norm", "attention", "gate"]
    name: str
    offset: float = 0.0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0


class Group:
    """One call of `linear` while a block runs: `weights` [n, k] read the same x [rows, k].

    biases   of each, or None; values put there hold from now on
    source   see Source; None where nothing can be folded
    """

    def __init__(self, ops: RowsOps, x: Node, weights: Sequence[Matrix], biases: Sequence[Vector | None], source: Source | None) -> None:
        self._ops, self.x, self.weights, self.biases, self.source = ops, x, list(weights), list(biases), source

    @property
    def names(self) -> list[str]:
        return [weight.name for weight in self.weights]

    def statistics(self, *, gram: bool = True, moments: bool = True) -> Statistics:
        """Of the inputs, over all rows. The inputs are then computed, and stay until the outputs are. gram, moments: see Statistics."""
        return self._ops.statistics(self.x, gram=gram, moments=moments)

    def mean(self, work: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """float64 [k]: the mean over all rows of the inputs, or of work(some of them [rows, k])."""
        return self._ops.mean(self.x, work)

    def observed(self, method: str) -> Observer:
        """An observer of that method (observers.METHODS) that has counted all inputs."""
        return self._ops.observed(self.x, method)

    def inputs(self, most: int) -> np.ndarray:
        """float32 [at most `most`, k]: rows spread evenly over all, the same ones every time."""
        return self._ops.sampled(self.x, most)
