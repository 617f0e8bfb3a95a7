"""Numbers: NaN, scales that are zero or wild or beyond their type, dead channels, zero points that are off by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ...checkpoints import Checkpoint, TensorInfo
from ...errors import OctavoError
from ...qtensor import QTensor
from ..findings import Disorder, Finding
from ..patient import INPUT_SCALES, SCALES, Patient
from . import Check

DAMAGED = "the weights are damaged, or quantization went wrong: fetch them again or quantize again"
NAN = Disorder("not_finite", "error", "a weight holds NaN or infinity", DAMAGED)
NAN_SCALE = Disorder("scale_not_finite", "error", "a scale is NaN or infinite: all numbers under it are lost", DAMAGED)
ZERO = Disorder("zero_scales", "error", "scales are zero: the weights under them are zero, whatever their codes", DAMAGED)
OUTLIER = Disorder("outlier_scale", "warning", "a scale is far beyond its neighbours: one weight, or one damaged number, decides the range of its group",
                   "look at this row of the source; if its weights are ordinary, quantize the tensor again")
OVERFLOW = Disorder("scale_overflow", "error", "16-bit scales have reached the end of their range: what was larger was cut",
                    "quantize again with float32 or bfloat16 scales")
COARSE = Disorder("scale_underflow", "warning", "16-bit scales are so small that they lose most of their digits (subnormal numbers)",
                  "quantize again with float32 or bfloat16 scales")
WIDE = Disorder("dtype_overflow", "warning", "numbers beyond the type that the config asks engines to compute in", "set dtype to bfloat16 in config.json")
DEAD = Disorder("dead_channels", "warning", "whole rows or columns of a weight are zero", "check that the source has them too (pruned models do)")
EMPTY = Disorder("zero_weight", "error", "every number of a weight is zero", DAMAGED)
SHIFT = Disorder("zero_point_shift", "error", "the weights of the whole model lie about one step to a side: zero points are read off by one",
                 "the file's zero points follow another convention than its config says (GPTQ v1 stores them less one, v2 as they are): set checkpoint_format")
FAR = 4096.0       # times the median
FP16_MAX, FP16_COARSE = 65504.0, 2.0**-17
PIECE = 512        # rows


@dataclass
class Shifts:
    """Mean distance of codes from their zero points, in steps, of each weight; and how sure that mean is."""

    means: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


def check(patient: Patient) -> Iterator[Finding]:
    yield from _stored(patient)
    if patient.checkpoint is not None:
        yield from _read(patient, patient.checkpoint)


def _stored(patient: Patient) -> Iterator[Finding]:
    """Floating-point tensors as the files hold them."""
    single: dict[str, dict[str, float]] = defaultdict(dict)
    half = str(patient.text_config.get("dtype") or patient.text_config.get("torch_dtype") or "").endswith("float16") and not str(
        patient.text_config.get("dtype") or patient.text_config.get("torch_dtype")).endswith("bfloat16")
    for parts in patient.weights.values():
        for part, name in parts.items():
            scale = part in SCALES or part in INPUT_SCALES
            if scale:
                yield from _scales(patient, part, name, single)
            elif patient.survey.is_float(name):
                yield from _plain(patient, name, half)
    for kind, values in single.items():
        middle = float(np.median(list(values.values())))
        for name, value in values.items():
            if middle > 0 and len(values) >= 4 and value > FAR * middle:
                yield OUTLIER(name, f"{value:.4g}, the median of the {len(values)} scales like it ({kind}) is {middle:.4g}")


def _plain(patient: Patient, name: str, half: bool) -> Iterator[Finding]:
    bad, largest, where, rows, columns = 0, 0.0, 0, 0, None
    entry = patient.survey.tensors[name]
    for first, piece in patient.survey.pieces(name):
        finite = np.isfinite(piece)
        if not finite.all():
            where = where if bad else first + int(np.argmin(finite.all(axis=1)))
            bad += int((~finite).sum())
            continue
        largest = max(largest, float(np.abs(piece).max(initial=0.0)))
        used = piece != 0
        rows += int((~used.any(axis=1)).sum())
        columns = used.any(axis=0) if columns is None else columns | used.any(axis=0)
    if bad:
        yield NAN(name, f"{bad} of {entry.nbytes * 8 // _bits(entry.dtype)} numbers, the first in row {where}")
    elif entry.nbytes and largest == 0 and len(entry.shape) == 2:
        yield EMPTY(name, f"{list(entry.shape)}")
    elif len(entry.shape) == 2 and columns is not None:
        yield from _dead(name, entry.shape, rows, int((~columns).sum()))
    if half and largest > FP16_MAX and entry.dtype in ("BF16", "F32"):
        yield WIDE(name, f"largest {largest:.4g}, float16 ends at 65504")


def _bits(dtype: str) -> int:
    return {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}.get(dtype, 8)


def _scales(patient: Patient, part: str, name: str, single: dict[str, dict[str, float]]) -> Iterator[Finding]:
    survey, entry = patient.survey, patient.survey.tensors[name]
    if entry.dtype == "U8" and part not in ("weight.absmax",):
        codes = survey.stored(name)
        values = np.where(codes == 255, np.nan, np.exp2(codes.astype(np.float32) - 127)).astype(np.float32)
    elif survey.is_float(name):
        values = np.abs(survey.floats(name))
    else:
        return
    survey.release(name)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        yield NAN_SCALE(name, f"{bad} of {values.size}, the first at {int(np.argmin(np.isfinite(values)))}")
        return
    if values.size == 0:
        return
    zeros, largest = int((values == 0).sum()), float(values.max())
    if 2 * zeros > values.size:
        yield ZERO(name, f"{zeros} of {values.size}")
        return
    middle = float(np.median(values))
    far = np.flatnonzero(values > FAR * middle)
    if middle > 0 and len(far) and entry.dtype != "U8":
        yield OUTLIER(name, f"{largest:.4g} at {int(far[0])}, the median of {values.size} is {middle:.4g}")
    if entry.dtype == "F16" and largest >= FP16_MAX:
        yield OVERFLOW(name, f"{int((values >= FP16_MAX).sum())} of {values.size} are 65504, the largest float16")
    coarse = int(((values > 0) & (values < FP16_COARSE)).sum())
    if entry.dtype == "F16" and 100 * coarse > values.size:
        yield COARSE(name, f"{coarse} of {values.size} lie below {FP16_COARSE:.3g}; the median is {middle:.3g}")
    if values.size == 1:
        single[part][name] = largest


def _dead(name: str, shape: tuple[int, ...], rows: int, columns: int) -> Iterator[Finding]:
    if rows or columns:
        yield DEAD(name, f"{rows} of {shape[0]} rows, {columns} of {shape[1]} columns")


def _read(patient: Patient, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Quantized weights as the codec reads them; of GGUF, everything."""
    shifts: dict[int, Shifts] = defaultdict(Shifts)
    known = set(patient.survey.tensors)
    for name, info in checkpoint.tensors.items():
        if info.spec is None or (name in known and not info.parts and not info.spec.quantized) or len(info.shape) > 2:
            continue
        try:
            yield from _weight(checkpoint, info, shifts)
        except OctavoError as error:
            yield NAN(name, error.what)
        checkpoint.release(name)
    for bits, found in shifts.items():
        middle, sure = float(np.median(found.means)), float(np.median(found.errors)) / len(found.means) ** 0.5
        sides = np.sign(found.means)
        if len(found.means) >= 4 and sure < 0.1 and 0.5 < abs(middle) < 2 and abs(float(sides.mean())) > 0.6:
            yield SHIFT(f"{len(found.means)} weights of {bits} bits", f"the median of their means is {middle:+.2f} steps, expected about 0")


def _weight(checkpoint: Checkpoint, info: TensorInfo, shifts: dict[int, Shifts]) -> Iterator[Finding]:
    assert info.spec is not None
    spec, height = info.spec, info.shape[0] if info.shape else 1
    step = height if spec.granularity == "tensor" else max(PIECE // spec.size, 1) * spec.size if spec.granularity == "block" else PIECE
    rows, columns, counted, total, squares, scales, zero_scales = 0, None, 0, 0.0, 0.0, 0, 0
    for first in range(0, height, step):
        tensor = checkpoint.read(info.name, slice(first, min(first + step, height)) if len(info.shape) == 2 and step < height else None)
        for part in _rows(tensor):
            used = part.dequantize().reshape(-1, info.shape[-1] if info.shape else 1) != 0
            rows += int((~used.any(axis=1)).sum())
            columns = used.any(axis=0) if columns is None else columns | used.any(axis=0)
            if part.scales is not None:
                scales, zero_scales = scales + part.scales.size, zero_scales + int((part.scales == 0).sum())
            if spec.quantized and spec.format.startswith("int") and part.offsets is None and info.parts:  # GGUF's scales have signs
                codes = part.codes.astype(np.float32)
                codes -= 0.0 if part.zeros is None else float(part.zeros.mean())
                counted, total = counted + codes.size, total + float(codes.sum(dtype=np.float64))
                squares += float(np.square(codes).sum(dtype=np.float64))
    if len(info.shape) == 2 and columns is not None:
        if not columns.any():
            yield EMPTY(info.name, f"{list(info.shape)}")
        else:
            # Small columns may well round to zero; a row has scales of its own, whose largest weight does not.
            yield from _dead(info.name, info.shape, rows, 0 if spec.quantized else int((~columns).sum()))
            if not info.parts and 2 * zero_scales > scales:
                yield ZERO(info.name, f"{zero_scales} of {scales}")
    if counted:
        mean = total / counted
        shifts[spec.bits].means.append(mean)
        shifts[spec.bits].errors.append((max(0.0, squares / counted - mean * mean) / counted) ** 0.5)


def _rows(tensor: QTensor) -> Iterator[QTensor]:
    """Pieces of a tensor whose one scale is for all rows, so that temporaries stay small; any other as it is."""
    if tensor.spec.granularity != "tensor" or len(tensor.shape) != 2 or tensor.scales is None:
        yield tensor
        return
    for first in range(0, tensor.shape[0], PIECE):
        codes = tensor.codes[first : first + PIECE]
        yield replace(tensor, codes=codes, shape=(len(codes), tensor.shape[1]))


CHECK = Check(check, (NAN, NAN_SCALE, ZERO, OUTLIER, OVERFLOW, COARSE, WIDE, DEAD, EMPTY, SHIFT))
