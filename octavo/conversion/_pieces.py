"""A tensor in pieces of a few rows: read, rounded where that was agreed, and handed to its writer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .. import formats
from ..checkpoints import Checkpoint, InexactError, TensorInfo, Writer
from ..errors import CheckpointError, OctavoError
from ..qtensor import NonFiniteError, QTensor, quantize
from ..schemes import TensorSpec

if TYPE_CHECKING:
    from ._plan import Item

CHUNK = 1 << 20  # numbers in flight in each thread: with all temporaries some 30 MB
UNIT = 512       # rows; see Writer.fill
COPY = 16 << 20  # bytes moved at a time


def fill(checkpoint: Checkpoint, item: Item, out: Mapping[str, np.ndarray], release: Callable[[], None]) -> None:
    """Put one tensor into its parts. `release` is called after each piece: pages that were written may go.

    Raises InexactError where the numbers do not fit, CheckpointError where they are damaged.
    """
    info = item.info
    if item.writer is None or item.spec is None:
        _move(checkpoint, info.name, next(iter(out.values())), release)
        return
    try:
        extent = _extent(checkpoint, info) if _rounds(item) and _crosses(item.spec) else None
        for first, piece in pieces(checkpoint, info, item.spec):
            if _rounds(item):
                _fill_rounded(item.writer, info.name, piece, item.spec, extent, first, out)
            else:
                item.writer.fill(info.name, piece, first, out)
            checkpoint.release(info.name)
            release()
    except NonFiniteError as error:
        raise CheckpointError(f"tensor {info.name!r} {error.what}", where=str(info.file), remedy=error.remedy) from None
    except InexactError as error:
        if not _rounds(item):
            raise
        raise CheckpointError(f"tensor {info.name!r} cannot be written even when it is rounded: {error.what}", where=str(info.file),
                              remedy="name another precision with --quantization, or keep it unquantized with --keep") from None


def pieces(checkpoint: Checkpoint, info: TensorInfo, target: TensorSpec | None = None) -> Iterator[tuple[int, QTensor]]:
    """(first row, rows) of the tensor as stored; a vector, and what has no rows, in one piece."""
    assert info.spec is not None
    if len(info.shape) < 2:
        yield 0, checkpoint.read(info.name)
        return
    whole = checkpoint.read(info.name) if info.spec.granularity == "tensor" else None  # such codes are views, or one byte each
    for rows in cuts(info.shape, info.spec, target):
        yield rows.start, checkpoint.read(info.name, rows) if whole is None else _rows(whole, rows)


def cuts(shape: tuple[int, ...], *specs: TensorSpec | None) -> list[slice]:
    """Slices of rows, about CHUNK numbers each, none of which cuts a block."""
    unit = math.lcm(UNIT, *(spec.size for spec in specs if spec is not None and spec.granularity == "block"))
    step = max(unit, CHUNK // max(1, math.prod(shape[1:])) // unit * unit)
    return [slice(a, min(a + step, shape[0])) for a in range(0, shape[0], step)]


def first_piece(checkpoint: Checkpoint, info: TensorInfo) -> QTensor:
    """The first few rows."""
    assert info.spec is not None
    if len(info.shape) < 2:
        return checkpoint.read(info.name)
    unit = math.lcm(UNIT, info.spec.size if info.spec.granularity == "block" else 1)
    rows = slice(0, min(unit, info.shape[0]))
    return _rows(checkpoint.read(info.name), rows) if info.spec.granularity == "tensor" else checkpoint.read(info.name, rows)


def _rows(tensor: QTensor, rows: slice) -> QTensor:
    """Rows of a tensor with one scale."""
    return replace(tensor, codes=tensor.codes[rows], shape=(rows.stop - rows.start, *tensor.shape[1:]))


def _rounds(item: Item) -> bool:
    """Whether its numbers become others before the writer sees them."""
    return bool(item.rounded) and item.quantized


def _crosses(spec: TensorSpec) -> bool:
    """Whether a scale depends on all rows."""
    return spec.granularity == "tensor" or (spec.quantized and formats.get(spec.format).two_level)


def _extent(checkpoint: Checkpoint, info: TensorInfo) -> tuple[float, float]:
    """(smallest, largest) number of the tensor."""
    low, high = math.inf, -math.inf
    for _, piece in pieces(checkpoint, info):
        values = piece.dequantize()
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        checkpoint.release(info.name)
    return (low, high) if low <= high else (0.0, 0.0)


def _fill_rounded(writer: Writer, name: str, piece: QTensor, spec: TensorSpec, extent: tuple[float, float] | None, first: int,
                  out: Mapping[str, np.ndarray]) -> None:
    """A second-level scale is rounded as its file holds it, a factor or a divisor. Where it alone does not fit, the codes stay: that changes the last
    bit of a number, where rounding the numbers again would change more."""
    made = piece if piece.spec == spec and piece.outer is not None else _rounded(piece, spec, extent)
    if made.outer is not None and float(made.outer) > 0:
        for outer in (np.float64(np.float32(made.outer)), 1 / np.float64(np.float32(1 / np.float64(made.outer)))):
            with contextlib.suppress(InexactError):
                writer.fill(name, replace(made, outer=outer), first, out)
                return
    writer.fill(name, made, first, out)


def _rounded(piece: QTensor, spec: TensorSpec, extent: tuple[float, float] | None) -> QTensor:
    """The piece in another precision; unquantized where the writer rounds by itself."""
    if not spec.quantized:
        if spec.format == "fp32" and not piece.spec.quantized:  # what was read is finite, and so is this
            return piece if piece.spec == spec else QTensor(piece.dequantize(), None, spec, piece.shape)
        return piece if piece.spec == spec else quantize(piece.dequantize(), spec)
    made = quantize(piece.dequantize(), spec, extent=extent, strict=True)
    if made.scales is not None and not bool(np.isfinite(made.scales).all()):
        raise OctavoError(f"has numbers so large that their scales are beyond {spec.scale_format}")
    return made


def _move(checkpoint: Checkpoint, name: str, out: np.ndarray, release: Callable[[], None]) -> None:
    """Bytes as they are."""
    stored: np.ndarray = checkpoint.as_stored(name)  # type: ignore[attr-defined]  # planned only for checkpoints that have it
    flat = out.reshape(-1).view("u1")
    for first in range(0, len(stored), COPY):
        flat[first : first + COPY] = stored[first : first + COPY]
        checkpoint.release(name)
        release()
