"""How large the inputs of every linear are, by the serving kernels: for who needs no more than that, in a third of the time of a forward in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..cache import PAGE, Step
from ..errors import ModelError
from ..loading import LoadedModel

ROWS = 2048  # run at a time, about: whole sequences


class _Watching:
    """The ops of a backend, which also add up the squares of what linears read: `sums` float64 [k], by the weight."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops
        self.sums: dict[int, np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def linear(self, x: Any, weights: Sequence[Any], biases: Any = None, residual: Any = None) -> Any:
        if not x.logits:
            found = np.zeros(x.width)
            self._ops.squares(x, found)
            self.sums.update((id(weight), found) for weight in weights)
        return self._ops.linear(x, weights, biases, residual)


def mean_squares(loaded: LoadedModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Of the inputs of each linear of a layer, float32 [k], by its weight's name. `loaded` runs on the native backend; tokens [sequences, length]. The same
    bits for any number of threads. Raises ModelError where the inputs are not finite."""
    seen: list[_Watching] = []

    def describe(ops: Any) -> Any:
        seen.append(_Watching(ops))
        return loaded.describe_on(seen[-1])

    program = loaded.backend.capture(describe)
    count, length = tokens.shape
    together = max(1, min(count, ROWS // length))
    pages = -(-length // PAGE)
    pool = loaded.new_pool(together * pages)
    for first in range(0, count, together):
        program.run(_step(tokens[first : first + together], pages), pool)
    found = {name: seen[-1].sums[id(weight)] / tokens.size for name, weight in loaded.bound.weights.items() if id(weight) in seen[-1].sums}
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise ModelError(f"the inputs of {name} are not finite on the calibration text",
                             remedy="choose a method that reads no text: rtn as it comes, or hqq")
    return {name: values.astype(np.float32) for name, values in found.items()}


def _step(tokens: np.ndarray, pages: int) -> Step:
    """Whole sequences [count, length], each in pages of its own."""
    count, length = tokens.shape
    rows, tables = np.arange(length, dtype=np.int32), np.arange(count * pages, dtype=np.int32).reshape(count, pages)
    slots = tables[:, rows // PAGE] * PAGE + rows % PAGE
    return Step(tokens=tokens.reshape(-1).astype(np.int32), positions=np.tile(rows, count), slots=slots.reshape(-1).astype(np.int32),
                starts=np.arange(count + 1, dtype=np.int32) * np.int32(length), lengths=np.full(count, length, np.int32), tables=tables,
                select=np.zeros(1, np.int32))
