"""Writes fine-grained FP8: E4M3 with one float32 scale per block."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from .base import InexactError, Part, Writer, WriterOptions

METHOD = "fp8"
SCALE = "weight_scale_inv"


class Fp8Writer(Writer):
    """E4M3 codes and float32 scales of blocks, which are of one size in the whole model: the most frequent one that comes, else 128 x 128. One scale
    for the whole weight is repeated for its blocks. The variant names the block: programs that take no ragged ones want one that divides all widths."""

    def __init__(self, options: WriterOptions) -> None:
        self.options = options
        blocks = Counter((s.size, s.columns) for s in options.specs.values() if (s.format, s.granularity) == ("fp8e4m3", "block"))
        rows, columns = blocks.most_common(1)[0][0] if blocks else (128, 128)
        if options.variant:
            named = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", options.variant)
            if named is None:
                raise UsageError(f"unknown block {options.variant!r} of fp8", remedy="write rows x columns, such as fp8:64x64")
            rows, columns = int(named[1]), int(named[2])
        self.spec = TensorSpec("fp8e4m3", "block", rows, columns)

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        whole = (spec.format, spec.granularity) == ("fp8e4m3", "tensor")
        if not whole and (spec.format, spec.granularity, spec.size, spec.columns) != ("fp8e4m3", "block", self.spec.size, self.spec.columns):
            return f"fine-grained FP8 holds E4M3 with a scale for each block of {self.spec.size} x {self.spec.columns}"
        return None

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        return self.spec

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Part]:
        parts = {name: Part("F8_E4M3", shape), _scale(name): Part("F32", self.spec.scale_shape(shape))}
        return parts | ({_inputs(name): Part("F32", ())} if name in self.options.input_scales else {})

    def fill(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        if tensor.order is not None or tensor.factors is not None:
            raise InexactError("its inputs are permuted or scaled")
        rows = tensor.shape[0]
        out[name][first : first + rows] = tensor.codes
        begin = first // self.spec.size
        out[_scale(name)][begin : begin - (-rows // self.spec.size)] = tensor.scales
        if _inputs(name) in out:
            out[_inputs(name)][...] = self.options.input_scales[name].reshape(())

    def config(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        found = [self.options.activations.get(name) for name in weights]
        static = bool(found) and all(spec is not None and not spec.dynamic for spec in found) and all(name in self.options.input_scales for name in weights)
        quantization: dict[str, Any] = {"quant_method": METHOD, "fmt": "e4m3", "weight_block_size": [self.spec.size, self.spec.columns],
                                        "activation_scheme": "static" if static else "dynamic"}
        # A head that shares the embedding's weight is no tensor of its own, and is not quantized.
        skipped = [*(name.removesuffix(".weight") for name in kept), *([] if "lm_head.weight" in weights else ["lm_head"])]
        quantization["modules_to_not_convert"] = list(dict.fromkeys(skipped))
        return {"quantization_config": quantization}


def _scale(name: str) -> str:
    return name.removesuffix("weight") + SCALE


def _inputs(name: str) -> str:
    return name.removesuffix("weight") + "activation_scale"

