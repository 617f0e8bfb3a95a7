"""From rows in a file to panels in memory, a few rows at a time: the model never exists in full precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import formats, layouts
from ..checkpoints import Checkpoint, TensorInfo
from ..errors import CheckpointError, KernelError
from ..layouts import Packed
from ..qtensor import NonFiniteError, QTensor, quantize, rotate
from ..schemes import TensorSpec
from ._assign import Job

CHUNK = 1 << 20        # numbers in flight
TEMPORARY = 28         # bytes in flight for each of them: float32 twice, codes, panels, and what quantizing needs on the way
STAGED = 96            # the same on a device: x twice, and two handfuls of float32 while its scales are fitted
LEAST_PIECE, LARGEST_PIECE = 1 << 16, 1 << 22  # numbers that are quantized together on a device
UNIT = layouts.TILE  # rows that are packed together at most


def row_chunks(rows: int, columns: int, cell: int = 1, numbers: int | None = None, unit: int = UNIT) -> list[slice]:
    """Slices of whole units (panels) and of whole cells of so many rows, with about so many numbers each (None: CHUNK)."""
    unit = math.lcm(unit, cell)
    step = max(unit, (numbers or CHUNK) // max(1, columns) // unit * unit)
    return [slice(a, min(a + step, rows)) for a in range(0, rows, step)]


def read_rows(checkpoint: Checkpoint, stored: str, numbers: int | None = None, unit: int = UNIT) -> Iterator[tuple[slice, QTensor]]:
    """A matrix in pieces of about so many numbers, in whole units of rows and whole cells where scales cross rows; what has one scale for all is read once and
    cut."""
    info = checkpoint.tensors[stored]
    rows, columns = info.shape
    if info.spec is not None and info.spec.granularity == "tensor":
        whole = checkpoint.read(stored)
        for part in row_chunks(rows, columns, 1, numbers, unit):
            yield part, replace(whole, codes=whole.codes[part], shape=(part.stop - part.start, columns))
        return
    cell = info.spec.size if info.spec is not None and info.spec.granularity == "block" else 1
    for part in row_chunks(rows, columns, cell, numbers, unit):
        yield part, checkpoint.read(stored, part)


def by_rows(spec: TensorSpec) -> bool:
    """Whether rows can be quantized a few at a time with the result that the whole would have."""
    return spec.granularity in ("none", "channel", "group") and not formats.get(spec.format).two_level


def temporary_bytes(job: Job, stored: TensorInfo) -> int:
    """Most bytes that are in flight while this weight is made, the pages of the file among them."""
    numbers, spec, stored_bytes = math.prod(job.shape), stored.spec, stored.nbytes
    rows = spec.size if spec is not None and spec.granularity == "block" else UNIT
    chunk = min(numbers, max(CHUNK, math.lcm(UNIT, rows) * job.shape[1]))
    if (by_rows(job.asked) or (spec is not None and same_numbers(spec, job.asked))) and layouts.why_not(job.kept) is None:
        whole = spec is not None and spec.granularity == "tensor"
        return TEMPORARY * chunk + (stored_bytes + numbers if whole else stored_bytes * chunk // max(1, numbers))
    return TEMPORARY * chunk + stored_bytes + 6 * numbers  # the whole in float32, its codes, and one more byte of either


def make_packed(checkpoint: Checkpoint, job: Job) -> Packed:
    """The weight in panels. What is stored in the precision asked for is moved as it is, never rounded again.

    Raises CheckpointError naming file and tensor for numbers that are not finite, and for what the layout does not hold.
    """
    try:
        spec = checkpoint.tensors[job.stored].spec
        moved = spec is not None and same_numbers(spec, job.asked)
        if not by_rows(job.asked) and (not moved or job.rotation):
            return layouts.pack(make_tensor(checkpoint, job), job.kept)
        narrow = job.kept.scale_format in ("fp16", "bf16")  # scales that may turn out not to fit
        for kept in (job.kept, replace(job.kept, scale_format="fp32")) if narrow else (job.kept,):
            packed = _by_rows(checkpoint, job, kept)
            if packed is not None:
                return packed
        raise KernelError(f"has scales of {job.kept.format} that have no place in {layouts.LAYOUT}")
    except (NonFiniteError, KernelError) as error:
        raise CheckpointError(f"tensor {job.stored!r} {error.what}", where=str(checkpoint.tensors[job.stored].file), remedy=error.remedy) from None


def make_tensor(checkpoint: Checkpoint, job: Job) -> QTensor:
    """The weight as one QTensor: for precisions whose scales need all of it, and for backends that take no panels."""
    stored = checkpoint.read(job.stored)
    tensor = stored if _as_asked(stored, job) else quantize(stored.dequantize(), job.asked, rotation=job.rotation)
    del stored
    checkpoint.release(job.stored)
    return tensor if same_numbers(tensor.spec, job.kept) else quantize(tensor.dequantize(), job.kept, rotation=job.rotation)


def piece(jobs: Iterable[Job]) -> int:
    """Numbers of a weight that are quantized together on a device: what they need on the way is a small part of all weights."""
    return max(LEAST_PIECE, min(LARGEST_PIECE, sum(job.nbytes for job in jobs) // (12 * STAGED)))


def staged_bytes(jobs: Sequence[Job]) -> int:
    """Most bytes that are in the making on a device."""
    return max((STAGED * min(math.prod(job.shape), max(piece(jobs), job.shape[1])) for job in jobs), default=0)


def on_device(checkpoint: Checkpoint, job: Job, move: Callable[[QTensor], QTensor], numbers: int) -> Iterator[QTensor]:
    """The weight for a device in pieces of rows: each of about `numbers` numbers is moved and quantized there, so that no more than a piece exists in full
    precision. What is stored in the precision asked for goes as it is. Where a scale belongs to the whole weight, the rows are read twice.

    Raises CheckpointError for numbers that are not finite.
    """
    info = checkpoint.tensors[job.stored]
    asked, kept = job.asked, job.kept
    stored = info.spec is not None and same_numbers(info.spec, asked)
    number = formats.get(asked.format)
    cells = asked.size if asked.granularity == "block" else 1
    cells = math.lcm(cells, kept.size if kept.granularity == "block" else 1)
    if info.spec is not None and formats.get(info.spec.format).kind == "trellis":
        cells = UNIT
    try:
        extent = None
        if not stored and (asked.granularity == "tensor" or number.two_level):
            extent = _extent(_turned(move(part).dequantize(), job) for _, part in read_rows(checkpoint, job.stored, numbers, cells))
        for _, part in read_rows(checkpoint, job.stored, numbers, cells):
            tensor = part if stored and _as_asked(part, job) else quantize(move(part).dequantize(), asked, extent=extent, rotation=job.rotation)
            yield tensor if same_numbers(tensor.spec, kept) else quantize(move(tensor).dequantize(), kept, rotation=job.rotation)
            del part, tensor
            checkpoint.release(job.stored)
    except NonFiniteError as error:
        raise CheckpointError(f"tensor {job.stored!r} {error.what}", where=str(info.file), remedy=error.remedy) from None


def _extent(parts: Iterator[Any]) -> tuple[float, float]:
    """(smallest, largest) number of all parts; NaN where there is one, which quantizing then names."""
    ends = [(float(part.min()), float(part.max())) for part in parts]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _by_rows(checkpoint: Checkpoint, job: Job, kept: TensorSpec) -> Packed | None:
    """The weight in panels, or None where some rows need wider scales than `kept` has."""
    packed: Packed | None = None
    asked = replace(job.asked, scale_format=kept.scale_format) if job.asked == job.kept else job.asked
    for rows, part in read_rows(checkpoint, job.stored):
        rounded = False
        if not same_numbers(part.spec, asked) or not _meets_rotation(part, job):
            part, rounded = quantize(part.dequantize(), asked, rotation=job.rotation), True
        if asked.format != kept.format:
            part, rounded = quantize(part.dequantize(), kept, rotation=job.rotation), True
        packed = packed or layouts.blank(kept, *job.shape, part)
        if part.spec.scale_format != kept.scale_format if rounded else not layouts.holds(packed.meta, part):
            return None
        layouts.pack_rows(packed, rows.start, part)
        del part
        checkpoint.release(job.stored)
    return packed


def _as_asked(stored: QTensor, job: Job) -> bool:
    return same_numbers(stored.spec, job.asked) and _meets_rotation(stored, job)


def _meets_rotation(stored: QTensor, job: Job) -> bool:
    """A job that wants rotated inputs wants codes of the rotated weight; codes of a weight that is stored rotated (a trellis) suit one that does not ask."""
    return not job.rotation or stored.rotation == job.rotation


def _turned(values: Any, job: Job) -> Any:
    return rotate(values, job.rotation) if job.rotation else values


def same_numbers(stored: TensorSpec, asked: TensorSpec) -> bool:
    """Whether codes of the one are codes of the other: all but the format of the scales is the same. Scales keep their numbers: they are moved to a
    type that holds them."""
    return stored == asked or (stored.format == asked.format and replace(stored, scale_format=asked.scale_format) == asked)


def make_vector(checkpoint: Checkpoint, stored: str) -> np.ndarray:
    """A norm's gain or a bias as float32."""
    tensor = checkpoint.read(stored)
    values: np.ndarray = np.array(tensor.codes if tensor.spec.format == "fp32" else tensor.dequantize(), np.float32)
    checkpoint.release(stored)
    if not np.isfinite(values).all():
        raise CheckpointError(f"tensor {stored!r} holds NaN or infinity", where=str(checkpoint.tensors[stored].file),
                              remedy="the weights are damaged: fetch them again")
    return values
