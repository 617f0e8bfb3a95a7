"""rtn: round to nearest.

What it is: each value goes to the nearest code of its group's scale; scales (and zero points) are searched so that the squared error is least, weighted
by what is known: by |w| without data, by the mean square of each input, too, where a transform such as awq reads text anyway (option importance:
mean_square reads it in any case, none never), as llama.cpp's importance matrix does. Where nothing else is asked of the text, the kernels that serve in 8
bits read it, in a third of the time.
When to choose it: no calibration data, or no time; 8 bits, where the rest hardly gains.
Limits: at 4 bits and below the calibrated methods lose clearly less.
Source: the search without data is described in octavo/qtensor/_quantize.py; weighting by inputs: llama.cpp's imatrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ...calibration import Statistics
from ...errors import UsageError
from ...qtensor import QTensor, quantize
from ...schemes import TensorSpec
from ..method import Needs
from ._grid import Grid, begin_rows, full_range

ROWS = 256  # worked on at a time
IMPORTANCE = ("known", "none", "mean_square")


@dataclass(frozen=True)
class Rtn:
    """importance   "mean_square": of the inputs, from calibration text; "known": the same where a transform reads text anyway; "none" """

    importance: str = "known"

    def __post_init__(self) -> None:
        if self.importance not in IMPORTANCE:
            raise UsageError(f"there is no importance {self.importance!r}", where="--set rtn.importance", remedy=f"known: {', '.join(IMPORTANCE)}")

    @property
    def needs(self) -> Needs:
        return "squares" if self.importance == "mean_square" else "nothing"

    @property
    def with_text(self) -> Needs:
        return "nothing" if self.importance == "none" else "squares"

    def round(self, weight: np.ndarray, spec: TensorSpec, statistics: Statistics | None) -> QTensor:
        return self.round_group([weight], [spec], statistics, 1)[0]

    def round_group(self, weights: Sequence[np.ndarray], specs: Sequence[TensorSpec], statistics: Statistics | None, threads: int) -> list[QTensor]:
        statistics = None if self.importance == "none" else statistics
        with ThreadPoolExecutor(threads) as pool:
            under_way = [self._weight(weight, spec, statistics, pool) for weight, spec in zip(weights, specs, strict=True)]
            return [wait() for wait in under_way]

    def _weight(self, weight: np.ndarray, spec: TensorSpec, statistics: Statistics | None, pool: ThreadPoolExecutor) -> Callable[[], QTensor]:
        if spec.granularity not in ("group", "channel") or (statistics is None and spec.symmetric):
            return pool.submit(quantize, weight, spec).result
        tensor, groups, free, ratios = full_range(weight, spec)
        k = weight.shape[1]
        inputs = np.ones(k, np.float32) if statistics is None else np.maximum(statistics.mean_square, np.float32(1e-30))

        def work(mine: np.ndarray, grid: Grid) -> np.ndarray:
            grid.search(mine, _importance(mine, inputs, groups))
            return grid.rounded(mine)

        return begin_rows(weight, tensor, groups, free, ROWS, work, pool, ratios)


def _importance(weight: np.ndarray, inputs: np.ndarray, groups: list[slice]) -> np.ndarray:
    """[k, rows]: the mean square of each input times sqrt(mean w^2 of the group + w^2): large weights count more, since no input is known by heart."""
    out = np.square(weight)
    for columns in groups:
        out[columns] += out[columns].mean(axis=0)
    np.sqrt(out, out=out)
    out *= inputs[:, None]
    return out


ROUNDER = Rtn
