"""What is stored of a linear's inputs: static scales, one number for all of them, found by an observer over the calibration text; and their rotation.

A scheme asks for them with `s`: W8A8ts is int8 inputs with one stored scale, Wfp8tAfp8ts the same in FP8. An input of several linears (q, k and v) has one
scale, so that it is rounded once. What lies beyond the range that the observer chose is clipped.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .. import formats
from ..calibration import Group
from ..calibration.observers import METHODS, Observer
from ..errors import SchemeError, UsageError
from ..qtensor import rotation_of
from ..registry import lookup
from ..schemes import Scheme, TensorSpec

USUAL = "mse"
OF_FLOATS = ("min-max", "percentile")  # the others weigh 255 equal steps against each other


def is_static(spec: TensorSpec) -> bool:
    return spec.quantized and not spec.dynamic


def rotation_for(scheme: Scheme, width: int) -> int:
    """The block in which `width` inputs of a linear with this scheme are rotated when the model runs (qtensor.rotate); 0: they are not."""
    wanted = scheme.activation.rotated and scheme.weight.quantized and formats.get(scheme.weight.format).kind != "trellis"  # that rotates by itself
    block = rotation_of(width) if wanted else 0
    return block if block > 1 else 0


def with_static_inputs(scheme: Scheme, where: str) -> Scheme:
    """The scheme with its static inputs as they are stored: one scale (a row that does not exist yet has none of its own). Raises SchemeError for what
    cannot be stored."""
    spec = scheme.activation
    if not is_static(spec):
        return scheme
    if spec.granularity not in ("tensor", "token") or spec.format not in ("int8", "fp8e4m3") or not spec.symmetric:
        raise SchemeError("static inputs have one scale, 8 bits and no zero point", where=where, remedy="write A8ts or Afp8ts, or leave the s away")
    return replace(scheme, activation=replace(spec, granularity="tensor"))


def check_observer(name: str, specs: list[TensorSpec]) -> str:
    """The observer for these static inputs; "" is the usual one of their format. Raises UnknownNameError, UsageError."""
    floats = any(formats.get(spec.format).kind != "int" for spec in specs)
    if not name:
        return OF_FLOATS[0] if floats else USUAL
    lookup("observer", name, METHODS)
    if floats and name not in OF_FLOATS:
        raise UsageError(f"the observer {name} judges integers", where="--observer", remedy=f"for FP8: {' or '.join(OF_FLOATS)}")
    return name


def scale_of(group: Group, spec: TensorSpec, observer: str) -> np.float32:
    """The scale of the inputs of `group`, above 0."""
    return scale_from(group.observed(observer), spec)


def scale_from(seen: Observer, spec: TensorSpec) -> np.float32:
    """The scale with which codes of `spec` span the range that the observer chose, above 0: as llm-compressor and vLLM have it, range / largest code."""
    if spec.format == "int8":
        return np.float32(seen.fixed().scale)
    return np.float32(seen.range()[1] / formats.get(spec.format).high) or np.float32(1)
