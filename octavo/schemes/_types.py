"""TensorSpec and Scheme: what a precision is, apart from how it is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .. import formats
from ..errors import SchemeError

Granularity = Literal["none", "tensor", "channel", "token", "group", "block"]
Role = Literal["weight", "activation", "cache"]
SCALE_FORMATS = ("fp32", "fp16", "bf16", "e8m0", "fp8e4m3")
LEAST_SYMMETRIC_CACHE = 5  # bits: with fewer, a token of the cache has an offset beside its scale, and both are bfloat16
LARGEST_SIZE = 1 << 24  # of a group or a block's side: beyond any layer, and far from overflow
THRESHOLDS = (0.001, 1e6)  # within which they are written and read without loss


@dataclass(frozen=True)
class TensorSpec:
    """How one tensor is stored.

    format       token of a number format: "fp32" "fp16" "bf16" "int8" "int4" "nf4" "fp8e4m3" ...
    granularity  "none" (unquantized), "tensor", "channel" (one scale per output row), "token" (per row of activations),
                 "group" (runs of `size` along the input), "block" (2-D, `size` rows x `columns`)
    size         group length, or rows of a block; 0 otherwise
    columns      columns of a block; 0 otherwise
    symmetric    False: zero points (or offsets, as in GGUF's minimums)
    scale_format "fp32" "fp16" "bf16" "e8m0" "fp8e4m3"
    dynamic      scales computed at run time (activations, cache) rather than stored
    threshold    of activations: values of at least this size stay as they are, beside codes of the others (LLM.int8(), arXiv 2208.07339); 0: none do
    rotated      of activations: a Hadamard rotation (qtensor.rotate) in blocks of up to 64 comes before them, and the weight is quantized rotated, too

    Raises SchemeError for a combination that cannot be.
    """

    format: str
    granularity: str = "none"
    size: int = 0
    columns: int = 0
    symmetric: bool = True
    scale_format: str = "fp32"
    dynamic: bool = False
    threshold: float = 0.0
    rotated: bool = False

    def __post_init__(self) -> None:
        if (problem := self._problem()) is not None:
            raise SchemeError(problem, where=f"{self.format} {self.granularity}")

    def _problem(self) -> str | None:
        number = formats.get(self.format)
        if number.token != self.format:
            return f"the token is {number.token!r}, {self.format!r} is an alias"
        if number.scale_only:
            return "this is a format of scales, not of tensors"
        if not number.scaled:
            plain = (self.granularity, self.size, self.columns, self.symmetric, self.dynamic, self.threshold, self.rotated) == (
                "none", 0, 0, True, False, 0, False)
            return None if plain else "an unquantized format has no scales, groups or zero points"
        if self.granularity not in ("tensor", "channel", "token", "group", "block"):
            return f"{self.format} needs a granularity: tensor, channel, token, group or block"
        sized, wide = self.granularity in ("group", "block"), self.granularity == "block"
        if (self.size > 0) != sized or (self.columns > 0) != wide or max(self.size, self.columns) > LARGEST_SIZE:
            return f"size {self.size} and columns {self.columns} do not fit the granularity"
        if number.kind == "trellis" and self.granularity != "channel":
            return "a trellis is for weights, with one scale per output row"
        if not self.symmetric and number.kind != "int":
            return "only integers have zero points"
        if self.scale_format not in SCALE_FORMATS:
            return f"unknown scale format {self.scale_format!r}, known: {', '.join(SCALE_FORMATS)}"
        if self.threshold and not (number.kind == "int" and self.dynamic and self.granularity in ("token", "group")):
            return "only integers whose scales are computed per token or group leave outliers out"
        if self.threshold and not THRESHOLDS[0] <= self.threshold <= THRESHOLDS[1]:
            return f"outliers begin at {THRESHOLDS[0]:g} to {THRESHOLDS[1]:g}, not at {self.threshold:g}"
        if self.rotated and not (self.dynamic and self.granularity in ("token", "group")):
            return "only what is quantized as it comes, per token or group, is rotated before"
        micro = number.two_level or number.scale_format == "e8m0"
        if micro and (self.granularity, self.size, self.scale_format) != (number.granularity, number.size, number.scale_format):
            return f"the format fixes groups of {number.size} with {number.scale_format} scales"
        if self.scale_format == "fp8e4m3" and not number.two_level:
            return "fp8e4m3 scales need a second level of scales, as nvfp4 has"
        return None

    @property
    def quantized(self) -> bool:
        """False for fp32, fp16 and bf16, which are stored as they are."""
        return self.granularity != "none"

    @property
    def bits(self) -> int:
        """Bits of one code, scales not counted."""
        return formats.get(self.format).bits

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Shape of the scales of a tensor [out, in] (or [n], taken as one row)."""
        rows, width = (1, 1, *shape)[-2:]
        if self.granularity in ("none", "tensor"):
            return 1, 1
        if self.granularity == "group":
            return rows, -(-width // self.size)
        if self.granularity == "block":
            return -(-rows // self.size), -(-width // self.columns)
        return rows, 1

    def packed_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor packed at its bits: codes, scales, zero points (as wide as a code) and outer scale."""
        total = math.prod(shape) * self.bits
        if self.quantized:
            scales = math.prod(self.scale_shape(shape))
            total += scales * (formats.get(self.scale_format).bits + (0 if self.symmetric else self.bits))
            total += 32 if formats.get(self.format).two_level else 0
        return -(-total // 8)

    def bits_per_weight(self, shape: tuple[int, int] = (4096, 4096)) -> float:
        """Bits per number with scales and zero points included, for a tensor of `shape`."""
        return 8 * self.packed_bytes(shape) / math.prod(shape)


_ALLOWED: dict[Role, tuple[str, ...]] = {
    "weight": ("none", "tensor", "channel", "group", "block"),
    "activation": ("none", "tensor", "token", "group"),
    "cache": ("none", "tensor", "token", "group"),
}


@dataclass(frozen=True)
class Scheme:
    """The precision of a linear's weight and activation, and of the KV cache. `str` gives the canonical name; `parse` reads it back.

    cache    of keys and values; where `values` is given, of keys alone
    values   of the cache's values; None: as `cache`
    """

    weight: TensorSpec
    activation: TensorSpec
    cache: TensorSpec
    values: TensorSpec | None = None

    def __post_init__(self) -> None:
        if self.values == self.cache:
            object.__setattr__(self, "values", None)
        for role, spec in (("weight", self.weight), ("activation", self.activation), ("cache", self.cache), ("cache", self.cache_values)):
            if spec.granularity not in _ALLOWED[role]:  # type: ignore[index]
                raise SchemeError(f"cannot have one scale per {spec.granularity}", where=role, remedy=f"possible: {', '.join(_ALLOWED[role])}")  # type: ignore[index]
        for role, spec in (("weight", self.weight), ("cache", self.cache), ("cache", self.cache_values)):
            if spec.threshold:
                raise SchemeError("only activations leave outliers out", where=role)
            if spec.rotated:
                raise SchemeError("only activations say that they are rotated", where=role)
        if self.activation.rotated and not self.weight.quantized:
            raise SchemeError("inputs are rotated for weights that are quantized, and this one is not", where="activation")
        if self.weight.dynamic:
            raise SchemeError("scales of a weight are stored, not computed at run time", where="weight")

    @property
    def cache_values(self) -> TensorSpec:
        """What the cache's values are stored in."""
        return self.cache if self.values is None else self.values

    def __str__(self) -> str:
        from ._grammar import write  # the grammar imports these types

        return write(self)


def default_scale_format(format: str, granularity: str, role: Role = "weight") -> str:
    """fp16 for stored groups of integers and tables and for a trellis, what the format fixes for microscaling, else fp32."""
    number = formats.get(format)
    if number.scale_format in ("e8m0", "fp8e4m3"):
        return number.scale_format
    if number.kind == "trellis":
        return "fp16"
    if role == "cache" and number.kind == "int" and number.bits < LEAST_SYMMETRIC_CACHE:
        return "bf16"
    return "fp16" if role == "weight" and granularity == "group" and number.kind in ("int", "table") else "fp32"


def default_spec(format: str, role: Role) -> TensorSpec:
    """What a bare format means for a weight, an activation or a cache: `8` is one scale per row, `4` groups of 128, and so on."""
    number = formats.get(format)
    if not number.scaled:
        return TensorSpec(number.token)
    micro = number.scale_format in ("e8m0", "fp8e4m3")
    if role == "weight" or micro or number.kind == "trellis":
        return TensorSpec(number.token, number.granularity, number.size, scale_format=default_scale_format(number.token, number.granularity),
                          dynamic=role != "weight")
    few = role == "cache" and number.kind == "int" and number.bits < LEAST_SYMMETRIC_CACHE
    return TensorSpec(number.token, "token", symmetric=not few, scale_format=default_scale_format(number.token, "token", role), dynamic=True)
