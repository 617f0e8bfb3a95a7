"""How a layer takes its inputs: what the activation part of a scheme means for the native kernels."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration.observers import Fixed
from ..errors import SchemeError
from ..schemes import TensorSpec

WHOLE_ROW = 1 << 24


@dataclass(frozen=True)
class Inputs:
    """group: values that share a scale of int8 codes, 0 for float inputs; fixed, zero_point: the one scale of all inputs where calibration found it,
    else 0; threshold: size from which on values stay float, 0 for none."""

    group: int = 0
    fixed: float = 0.0
    zero_point: int = 0
    threshold: float = 0.0

    @staticmethod
    def of(spec: TensorSpec, found: Fixed | None = None, where: str = "") -> Inputs:
        """What `spec` asks for; `found` is what calibration says where its scales are static. Raises SchemeError for what no kernel takes."""
        if not spec.quantized:
            return Inputs()
        if spec.format != "int8":
            raise SchemeError(f"activations in {spec.format} do not run in modules", where=where, remedy="A8 (dynamic), A8ts (static) or A16")
        if spec.rotated:
            raise SchemeError("inputs of modules are not rotated", where=where, remedy="leave the h out (A8)")
        if is_static(spec):
            if found is None:
                raise SchemeError("static activations need data to be calibrated on", where=where, remedy="give data=..., or A8 for dynamic scales")
            return Inputs(WHOLE_ROW, found.scale, found.zero_point)
        if not spec.symmetric or spec.granularity not in ("token", "group") or spec.size % 32:
            raise SchemeError(f"dynamic activations per {spec.granularity} do not run in modules", where=where,
                              remedy="A8 (a scale per row) or A8g64 (a multiple of 32), without zero points")
        return Inputs(spec.size or WHOLE_ROW, threshold=spec.threshold)


def is_static(spec: TensorSpec) -> bool:
    """Whether a layer's inputs are to have one scale that calibration finds: A8ts and, since rows to come are unknown, A8s."""
    return spec.quantized and not spec.dynamic and spec.granularity in ("tensor", "token")
