"""Errors of weights: how far a quantized checkpoint's matrices lie from the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from .. import layouts
from ..checkpoints import Checkpoint
from ..loading import LoadedModel, read_rows
from ..qtensor import QTensor

MOST = 4 << 20  # numbers looked at of a matrix: of larger ones every so many pieces of rows, which is enough for a mean
MOST_LOADED = 1 << 19  # beside a server


def weight_errors(original: Checkpoint, result: Checkpoint) -> dict[str, float]:
    """||result - original|| / ||original|| (Frobenius) of each matrix that both have and that is stored differently; infinity for one of no numbers.

    After a transform that scales or rotates weights against each other this says nothing about the loss; the outputs' errors and KL do.
    """
    found = {}
    for name, info in original.tensors.items():
        other = result.tensors.get(name)
        if other is None or len(info.shape) != 2 or other.shape != info.shape or (info.spec is not None and info.spec == other.spec):
            continue
        found[name] = _ratio(_pieces(original, result, name))
        original.release(name)
        result.release(name)
    return found


def loaded_errors(original: LoadedModel, model: LoadedModel, check: Callable[[], None] = lambda: None) -> dict[str, float]:
    """The same of two models in memory, by the names of the architecture, for the weights that lie packed in both (the native backend's): what is multiplied
    against what the original multiplies. At most MOST_LOADED numbers of each; `check` is called before each and may raise."""
    found = {}
    for name, weight in model.bound.weights.items():
        before, after = (getattr(one, "packed", None) for one in (original.bound.weights.get(name), weight))
        if before is None or after is None or (before.meta.n, before.meta.k) != (after.meta.n, after.meta.k) or before.meta.spec == after.meta.spec:
            continue
        check()
        found[name] = _ratio(_panels(before, after))
    return found


def _panels(before: layouts.Packed, after: layouts.Packed) -> Iterator[tuple[QTensor, QTensor]]:
    n, k = before.meta.n, before.meta.k
    every = max(1, n * k // MOST_LOADED)
    for row in range(0, n, layouts.TILE * every):
        rows = slice(row, min(row + layouts.TILE, n))
        yield layouts.unpack(before, rows), layouts.unpack(after, rows)


def _ratio(pieces: Iterable[tuple[QTensor, QTensor]]) -> float:
    square = error = 0.0
    for before, after in pieces:
        truth = np.asarray(before.dequantize(), np.float32)
        square += float(np.sum(truth**2, dtype=np.float64))
        error += float(np.sum((np.asarray(after.dequantize(), np.float32) - truth) ** 2, dtype=np.float64))
    ratio = math.sqrt(error / square) if square > 0 else (0.0 if error == 0 else math.inf)
    return ratio if math.isfinite(ratio) else math.inf


def _pieces(original: Checkpoint, result: Checkpoint, name: str) -> Iterator[tuple[QTensor, QTensor]]:
    infos = original.tensors[name], result.tensors[name]
    if any(info.spec is not None and info.spec.granularity in ("tensor", "block") for info in infos):
        yield original.read(name), result.read(name)  # scales that cross rows: pieces of the two would not be the same rows
        return
    every = max(1, math.prod(infos[0].shape) // MOST)
    for place, ((_, before), (_, after)) in enumerate(zip(read_rows(original, name), read_rows(result, name), strict=True)):
        if place % every == 0:
            yield before, after
