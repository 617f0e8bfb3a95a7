"""Cells: the parts of a tensor that share a scale. Which element belongs to which cell, and how to walk through them in pieces."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from ..schemes import TensorSpec

Array = Any

CHUNK = 1 << 16  # elements worked on at a time: a handful of temporaries of this size stay in the L2 cache


def chunks(rows: int, width: int, x: Array = None) -> list[slice]:
    """Slices of rows with about CHUNK elements each; all rows where x lies on a GPU, which wants much to do at once."""
    step = max(1, CHUNK // max(1, width)) if x is None or not getattr(x, "is_cuda", False) else max(1, rows)
    return [slice(a, min(a + step, rows)) for a in range(0, rows, step)]


def cell(spec: TensorSpec, width: int) -> tuple[int, int]:
    """(rows, columns) that share a scale in a tensor of this width; 0 rows means all."""
    if spec.granularity in ("none", "tensor"):
        return 0, width
    if spec.granularity == "group":
        return 1, spec.size
    return (spec.size, spec.columns) if spec.granularity == "block" else (1, width)


def per_row(array: Array, spec: TensorSpec, part: slice) -> Array:
    """Scales or zeros of the rows `part`: [rows, groups, 1] (or [1, 1, 1] for one per tensor), to meet `grouped` elements."""
    xp = array_namespace(array)
    rows, _ = cell(spec, 0)
    if rows == 0:
        return array[..., None]
    mine = array[part]
    if rows > 1:
        first = part.start // rows
        mine = xp.repeat(array[first : -(-part.stop // rows)], rows, axis=0)[part.start - first * rows : part.stop - first * rows]
    return mine[..., None]


def grouped(x: Array, columns: int) -> Array:
    """x [rows, width] as [rows, groups, columns], the last group filled up with zeros."""
    xp = array_namespace(x)
    rows, width = x.shape
    if width % columns:
        x = xp.concat([x, xp.zeros((rows, columns - width % columns), dtype=x.dtype, device=device(x))], axis=1)
    return xp.reshape(x, (rows, -1, columns))


def flattened(x: Array, width: int) -> Array:
    """The inverse of `grouped`: [rows, groups, columns] as [rows, width]."""
    xp = array_namespace(x)
    return xp.reshape(x, (x.shape[0], -1))[:, :width]


def extremes(x: Array, spec: TensorSpec) -> tuple[Array, Array]:
    """(smallest, largest) value of each cell of x [rows, width], float32, in the shape of the scales. NaN spreads, as infinity does."""
    xp = array_namespace(x)
    rows, width = x.shape
    cell_rows, columns = cell(spec, width)
    low, high = [], []
    for part in chunks(rows, width, x):
        chunk = xp.astype(x[part], xp.float32)
        low.append(_reduce(xp.min, chunk, columns))
        high.append(_reduce(xp.max, chunk, columns))
    if not low:
        nothing = xp.zeros((1 if cell_rows == 0 else 0, -(-width // columns)), dtype=xp.float32)
        return nothing, nothing
    lows, highs = xp.concat(low, axis=0), xp.concat(high, axis=0)
    if cell_rows == 0:
        return xp.min(lows, axis=0, keepdims=True), xp.max(highs, axis=0, keepdims=True)
    if cell_rows == 1:
        return lows, highs
    cuts = range(0, rows, cell_rows)
    return (xp.concat([xp.min(lows[a : a + cell_rows], axis=0, keepdims=True) for a in cuts], axis=0),
            xp.concat([xp.max(highs[a : a + cell_rows], axis=0, keepdims=True) for a in cuts], axis=0))


def _reduce(function: Any, x: Array, columns: int) -> Array:
    """min or max over runs of `columns` of each row: [rows, ceil(width / columns)]."""
    xp = array_namespace(x)
    rows, width = x.shape
    whole = width // columns
    done = [function(xp.reshape(x[:, : whole * columns], (rows, whole, columns)), axis=2)] if whole else []
    if width % columns:
        done.append(function(x[:, whole * columns :], axis=1, keepdims=True))
    return done[0] if len(done) == 1 else xp.concat(done, axis=1)
