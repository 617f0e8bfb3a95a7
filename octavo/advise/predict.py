"""Predictions where nothing can be measured: a precision that could not be loaded here, and other hardware."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..schemes import Scheme
from .candidate import Candidate, Step
from .hardware import MATRIX, Device, Row

WIDTH = (4096, 4096)  # of a matrix that bits per weight are counted for


def without_measuring(name: str, scheme: Scheme, known: Sequence[Candidate], schemes: Sequence[Scheme], why: str) -> Candidate | None:
    """What `scheme` would be here, from the measured one whose activations are nearest to its own: the same operations at the same rate, and its bytes
    at the same bandwidth. None where nothing was measured. Its loss is not known, but where it keeps 16 bits of everything."""
    measured = [(one, other) for one, other in zip(known, schemes, strict=True) if not one.predicted]
    if not measured:
        return None
    like, its = min(measured, key=lambda pair: (pair[1].activation.format != scheme.activation.format, -_bits(pair[1])))
    share = _bits(scheme) / _bits(its)
    reading = like.decode[0].seconds / like.decode[0].bytes
    computing = like.prefill.seconds / like.prefill.operations

    def step(old: Step) -> Step:
        new = replace(old, weight_bytes=old.weight_bytes * share)
        return replace(new, seconds=max(new.bytes * reading, old.operations * computing), deviation=0.0)

    whole = not scheme.weight.quantized and not scheme.activation.quantized and not scheme.cache.quantized
    return replace(like, name=name, scheme=str(scheme), kl=0.0 if whole else math.nan, kl_low=math.nan, kl_high=math.nan,
                   weight_bytes=int(like.weight_bytes * share), prefill=step(like.prefill), decode=tuple(step(s) for s in like.decode), sweep=(), predicted=why,
                   runs=False, notes=(f"predicted from {like.name}",))


def on_device(candidate: Candidate, scheme: Scheme, device: Device) -> Candidate | None:
    """The candidate on a device that is not here: for each step the larger of its bytes at the maker's bandwidth and its operations at the peak rate of
    the format that the device multiplies. So it is a bound, which real kernels miss by a factor of 1.2 to 3. None where the device cannot run it."""
    row = next(row for row in MATRIX if row.device is device)
    kind = arithmetic(scheme, row)
    if kind is None:
        return None
    peak = device.peaks[kind]

    def step(old: Step) -> Step:
        return replace(old, seconds=max(old.bytes / device.bandwidth, old.operations / peak), deviation=0.0)

    room = candidate.weight_bytes <= device.memory
    why = f"at the bandwidth and the {kind} rate that the maker of {device.name} states" + ("" if room else "; its weights do not fit")
    return replace(candidate, prefill=step(candidate.prefill), decode=tuple(step(s) for s in candidate.decode), sweep=(),
                   fixed_bytes=0, predicted=why, runs=room)


def arithmetic(scheme: Scheme, row: Row) -> str | None:
    """The format in which hardware of a row multiplies for a scheme: its activations' where that is native, else 16 bits; None where it cannot."""
    weight, activation = _kind(scheme.weight.format), _kind(scheme.activation.format)
    if row.answer(weight) == "no" or row.device is None:
        return None
    return activation if row.answer(activation) == "native" and activation in row.device.peaks else "16bit"


def _kind(number: str) -> str:
    """int8 -> int8, mxfp8 -> fp8, nf4 -> int4 (a table of 16 numbers is widened as integers are), bf16 -> 16bit."""
    if number in ("bf16", "fp16", "fp32"):
        return "16bit"
    if "fp8" in number:
        return "fp8"
    if "fp4" in number:
        return "fp4"
    return "int8" if number in ("int8", "int7", "int6", "int5") else "int4"


def _bits(scheme: Scheme) -> float:
    return scheme.weight.bits_per_weight(WIDTH)
