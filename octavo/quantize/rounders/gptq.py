"""gptq: rounds input after input, and lets the inputs that follow make good what was lost.

What it is: GPTQ with the largest inputs first and groups where they are (no reordering is stored), scales searched for the inputs' sizes; then scales and
codes are changed one at a time wherever the error of the outputs falls. An error counts as a part of its token's own outputs, so that the first token of a
text, whose outputs are hundreds of times larger in many models, does not decide alone.
When to choose it: the default below 8 bits: some hundred sequences of text and minutes of time.
Limits: it keeps the sums of products of all inputs, k^2 numbers for a weight of k inputs; fewer calibration tokens than inputs make it fit the text.
Source: GPTQ, arXiv 2210.17323; coordinate descent on codes, arXiv 2309.01885 (QuantEase).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from ...calibration import Statistics
from ...calibration.extra import one_blas_thread
from ...errors import ModelError, UsageError
from ...qtensor import QTensor
from ...schemes import TensorSpec
from ..method import Needs
from ._grid import Grid, begin_rows, full_range
from ._lattice import descend, factor, feedback, shares_of

GROUPS = ("static", "dynamic")
ROWS = 288  # worked on at a time, by one thread


@dataclass(frozen=True)
class Gptq:
    """damping   of the mean of H's diagonal, added to it; grown where H is still not positive definite
    groups    "static": groups of neighbouring inputs, as everywhere; "dynamic": groups of inputs of like size, with the order stored (g_idx)
    passes    of the descent over codes; 0 is plain GPTQ
    """

    damping: float = 0.05
    groups: str = "static"
    passes: int = 8
    remarks: list[str] = field(default_factory=list, init=False, compare=False, repr=False)

    needs: ClassVar[Needs] = "gram"

    def __post_init__(self) -> None:
        if self.groups not in GROUPS:
            raise UsageError(f"there are no groups {self.groups!r}", where="--set gptq.groups", remedy=f"known: {', '.join(GROUPS)}")

    def round(self, weight: np.ndarray, spec: TensorSpec, statistics: Statistics | None) -> QTensor:
        return self.round_group([weight], [spec], statistics, 1)[0]

    def draft(self) -> Gptq:
        return replace(self, passes=0)

    def round_group(self, weights: Sequence[np.ndarray], specs: Sequence[TensorSpec], statistics: Statistics | None, threads: int) -> list[QTensor]:
        assert statistics is not None and statistics.gram is not None
        gram, order = self._hessian(statistics.gram)
        stored = None
        if self.groups == "dynamic":
            stored, gram = order.astype(np.int32), np.ascontiguousarray(gram[np.ix_(order, order)])
            weights, order = [np.ascontiguousarray(weight[:, stored]) for weight in weights], np.arange(len(order))
        m, more = factor(gram, order, 0.0)
        if more:
            self.remarks.append(f"the inputs are so alike that the damping had to grow from {self.damping:g} to {self.damping + more:g} of the mean diagonal")
            gram[np.diag_indices(len(gram))] += np.float32(more * float(np.trace(gram, dtype=np.float64)) / len(gram))
        importance = np.empty((len(m), 1), np.float32)
        importance[order, 0] = np.diagonal(m) ** 2  # what is left of each input's size when those rounded later have made good what they can
        shares = shares_of(m)
        with ThreadPoolExecutor(threads) as pool, one_blas_thread():
            under_way = [self._weight(weight, spec, gram, shares, importance, order, pool) for weight, spec in zip(weights, specs, strict=True)]
            return [replace(wait(), order=stored) for wait in under_way]

    def _hessian(self, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(damped gram, the order in which inputs are rounded: the largest first)."""
        k = len(gram)
        mean = float(np.trace(gram, dtype=np.float64)) / k
        if not np.isfinite(mean):
            raise ModelError("the inputs of a linear overflow float32 on the calibration text", remedy="quantize this model with --method rtn or hqq")
        if mean <= 0:  # no input was ever anything but 0: any rounding is as good, the nearest is natural
            return np.eye(k, dtype=np.float32), np.arange(k)
        damped = gram.copy()
        damped[np.diag_indices(k)] += np.float32(self.damping * mean)
        return damped, np.argsort(-np.diagonal(gram), kind="stable")

    def _weight(self, weight: np.ndarray, spec: TensorSpec, gram: np.ndarray, shares: np.ndarray, importance: np.ndarray, order: np.ndarray,
                pool: ThreadPoolExecutor) -> Callable[[], QTensor]:
        tensor, groups, free, ratios = full_range(weight, spec)
        group_of = np.zeros(len(order), np.int64)
        for index, columns in enumerate(groups):
            group_of[columns] = index

        def work(mine: np.ndarray, grid: Grid) -> np.ndarray:
            grid.search(mine, importance)
            values = feedback(mine[order], shares, grid, order, group_of[order])
            return descend(mine, values, gram, grid, self.passes) if self.passes else values

        return begin_rows(weight, tensor, groups, free, ROWS, work, pool, ratios)


ROUNDER = Gptq
