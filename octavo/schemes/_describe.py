"""A precision in words."""

from __future__ import annotations

from .. import formats
from ._types import Role, TensorSpec

_PROPER = {"nf4": "NF4", "fp4": "FP4 (bitsandbytes)", "fp8e4m3": "FP8 E4M3", "fp8e5m2": "FP8 E5M2", "mxfp4": "MXFP4", "mxfp8": "MXFP8", "nvfp4": "NVFP4"}


def describe(spec: TensorSpec, role: Role = "weight") -> str:
    """`INT4, groups of 64 along the input, fp16 scales`: what a TensorSpec says, for people."""
    name = _PROPER.get(spec.format, spec.format.upper())
    if not spec.quantized:
        return f"{name}, not quantized"
    token = "one {} per token" if role != "cache" else "one {} per token and head" if spec.dynamic else "one {} per head"
    over = {
        "tensor": "one {} for the tensor", "channel": "one {} per output row", "token": token,
        "group": f"groups of {spec.size} along the input" if role == "weight" else f"groups of {spec.size}",
        "block": f"blocks of {spec.size} x {spec.columns}",
    }[spec.granularity].format(f"{spec.scale_format} scale")
    parts = [name, over]
    if spec.granularity in ("group", "block"):
        parts.append(f"{spec.scale_format} scales")
    if formats.get(spec.format).two_level:
        parts.append("one fp32 scale of the tensor on top")
    if not spec.symmetric:
        parts.append("with zero points")
    if spec.threshold:
        parts.append(f"values from {spec.threshold:g} on stay unrounded")
    if spec.rotated:
        parts.append("after a Hadamard rotation")
    if role != "weight":
        parts.append("computed at run time" if spec.dynamic else "static (from calibration)")
    return ", ".join(parts)
