"""Group: linears that read the same input, and where that input comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .observers import Observer
from .statistics import Statistics

if TYPE_CHECKING:
    from .rows import Call, Matrix, Node, RowsOps, Vector


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

    def __init__(self, ops: RowsOps, x: Node, weights: Sequence[Matrix], biases: Sequence[Vector | None], source: Source | None,
                 residual: Node | None = None, reference: Call | None = None) -> None:
        self._ops, self.x, self.weights, self.biases, self.source = ops, x, list(weights), list(biases), source
        self._residual, self._reference = residual, reference
        self._known: dict[tuple[bool, bool, bool, bool], Statistics] = {}
        self._counts: dict[bool, list[np.ndarray]] = {}

    @property
    def names(self) -> list[str]:
        return [weight.name for weight in self.weights]

    def statistics(self, *, gram: bool = True, moments: bool = True, counted: bool = True, reaching: bool = True) -> Statistics:
        """Of the inputs, over all rows. The inputs are then computed, and stay until the outputs are. gram, moments: see Statistics; counted: rows count in
        squares as `counts` says, which reaching is for."""
        asked = gram, moments, counted, reaching
        if asked not in self._known:
            self._known[asked] = self._ops.statistics(self.x, self.counts(reaching=reaching) if counted else None, gram=gram, moments=moments)
        return self._known[asked]

    def counts(self, *, reaching: bool = True) -> list[np.ndarray]:
        """What a squared error of the outputs counts at each row, float32 [rows] of each chunk, for the weights as they are when this is first asked for:
        see tokens.py, and reach.py for those before attention, unless reaching is False."""
        if reaching not in self._counts:
            biases = [None if bias is None else bias.values for bias in self.biases]
            names = self.names if reaching else None
            self._counts[reaching] = self._ops.counts(self.x, names, [weight.values for weight in self.weights], biases, self._residual)
        return self._counts[reaching]

    @property
    def into_stream(self) -> bool:
        """Whether the outputs, as they are, are added to the residual stream."""
        return self._residual is not None

    def missed(self) -> list[np.ndarray] | None:
        """float32 [n, k] for each weight: the mean over all rows, which count as `counts` says, of d^T x, where x are the inputs here and d what the outputs
        lack, with these weights, of those in the unrounded model. Where the outputs are added to the residual stream, d is what the stream then lacks,
        earlier rounding included. None where the unrounded model is not at hand (Block.refer)."""
        if self._reference is None:
            return None
        (bias, *_) = self.biases
        return self._ops.missed(self.x, [weight.values for weight in self.weights], None if bias is None else bias.values, self._residual, self._reference,
                                self.counts())

    def mean(self, work: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """float64 [k]: the mean over all rows of the inputs, or of work(some of them [rows, k])."""
        return self._ops.mean(self.x, work)

    def observed(self, method: str) -> Observer:
        """An observer of that method (observers.METHODS) that has counted all inputs."""
        return self._ops.observed(self.x, method)[0]

    def inputs(self, most: int) -> np.ndarray:
        """float32 [at most `most`, k]: rows spread evenly over all, the same ones every time."""
        return self._ops.sampled(self.x, most)

    def sampled_counts(self, most: int) -> np.ndarray:
        """`counts` of the rows that `inputs` returns, float32 [at most `most`], by their size alone. The few tokens that reach furthest are one direction of a
        gram, which rounding can spare; an error that is summed over a sample of rows they would be all of."""
        return np.concatenate([part[self._ops.sample_of(index, most)] for index, part in enumerate(self.counts(reaching=False))])
