"""Unquantized numbers into safetensors: what a target keeps in 16 or 32 bits, and all of a model that is dequantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import formats
from ..errors import UsageError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._mapped import not_finite
from .base import InexactError, Part, Writer, WriterOptions

TYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}


class PlainWriter(Writer):
    """Tensors under their own names. The type is the variant (bf16, fp16, fp32), or, where that is "": the stored one of unquantized numbers, and
    `quantized` for quantized ones: float32 holds every number that they stand for."""

    def __init__(self, options: WriterOptions, quantized: str = "fp32") -> None:
        if options.variant not in ("", *TYPES):
            raise UsageError(f"unknown type {options.variant!r}", remedy=f"known: {', '.join(TYPES)}")
        self.dtype, self.quantized = options.variant, quantized

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        target = self.nearest(name, spec, shape).format
        return None if target in (spec.format, "fp32") else f"to {target}"

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(self.dtype or (self.quantized if spec.quantized else spec.format))

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Part]:
        return {name: Part(TYPES[self.nearest(name, spec, shape).format], shape)}

    def fill(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        target = self.nearest(name, tensor.spec, tensor.shape).format
        codes = tensor.codes if tensor.spec.format == target else formats.get(target).encode(tensor.dequantize())
        if codes is not tensor.codes and not_finite(codes, target):
            raise InexactError(f"it holds numbers beyond what {target} reaches")
        if tensor.shape:
            out[name][first : first + tensor.shape[0]] = codes
        else:
            out[name][...] = codes

    def config(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        return {}
