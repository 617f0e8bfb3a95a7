"""TensorSpec, Scheme, Plan and the grammar that names them (skeleton: owned by the precision work)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TensorSpec:
    """How one tensor is stored.

    format       token of a number format: "fp32" "fp16" "bf16" "int8" "int4" "nf4" "fp8e4m3" ...
    granularity  "none" (unquantized), "tensor", "channel" (one scale per output row), "token" (per row of activations),
                 "group" (runs of `size` along the input), "block" (2-D, `size` rows x `columns`)
    size         group length, or rows of a block; 0 otherwise
    columns      columns of a block; 0 otherwise
    symmetric    False: zero points
    scale_format "fp32" "fp16" "bf16" "e8m0" "fp8e4m3"
    dynamic      scales computed at run time (activations, cache) rather than stored
    """

    format: str
    granularity: str = "none"
    size: int = 0
    columns: int = 0
    symmetric: bool = True
    scale_format: str = "fp32"
    dynamic: bool = False


@dataclass(frozen=True)
class Scheme:
    weight: TensorSpec
    activation: TensorSpec
    cache: TensorSpec


@dataclass(frozen=True)
class Plan:
    """A default Scheme and ordered overrides: the first pattern (glob on the tensor's name) that matches wins; None keeps the tensor."""

    default: Scheme
    overrides: tuple[tuple[str, Scheme | None], ...] = field(default=())
