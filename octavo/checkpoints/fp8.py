"""fp8: fine-grained FP8, as DeepSeek-V3 and Qwen3 publish it and as transformers' FineGrainedFP8Config writes it.

What it is: `X.weight` in E4M3 beside `X.weight_scale_inv`, one float32 scale for each block (128 x 128 by default) of the weight; blocks at the
edges are ragged. Despite its name the scale multiplies.
When to choose it: GPUs that multiply FP8 (Ada, Hopper, Blackwell).
Limits: E4M3 weights; activations are quantized at run time, per token and 128 values ("dynamic"), or with one stored scale per weight ("static").
Source: DeepSeek-V3's README_WEIGHTS.md; transformers' fine-grained FP8 integration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._folder import quant_method
from ._json import shown
from ._quantized import Layer, QuantizedCheckpoint, Raw, open_quantized
from .base import InexactError, Part, Writer, WriterOptions

METHOD = "fp8"
SCALE = "weight_scale_inv"


def _layers(config: dict[str, Any], quantization: dict[str, Any], raw: Raw) -> Iterator[Layer]:
    where = f"{raw.path / 'config.json'}: quantization_config"
    if (fmt := quantization.get("fmt", "e4m3")) not in ("e4m3", "float8_e4m3fn"):
        raise CheckpointError(f"fmt is {shown(fmt)}, only e4m3 is read", where=where)
    size = quantization.get("weight_block_size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(s) is int and 0 < s <= 1 << 20 for s in size)):
        raise CheckpointError(f"weight_block_size is {shown(size)}, not two whole numbers above 0", where=where)
    spec = TensorSpec("fp8e4m3", "block", size[0], size[1])
    static = quantization.get("activation_scheme", "dynamic") == "static"
    activation = TensorSpec("fp8e4m3", "tensor") if static else TensorSpec("fp8e4m3", "group", size[1], dynamic=True)
    for name in raw.entries:
        if name.endswith(f".{SCALE}"):
            yield _layer(name.removesuffix(SCALE), spec, activation, raw)


def _layer(prefix: str, spec: TensorSpec, activation: TensorSpec, raw: Raw) -> Layer:
    weight, scale = f"{prefix}weight", f"{prefix}{SCALE}"
    shape = raw.entry(weight, ("F8_E4M3",), (None, None)).shape
    raw.entry(scale, ("F32", "BF16", "F16"), spec.scale_shape(shape))
    inputs = f"{prefix}activation_scale"

    def read(first: int, last: int) -> QTensor:
        codes = raw.array(weight, ("F8_E4M3",))[first:last]
        scales = raw.floats(scale)[first // spec.size : -(-last // spec.size)]
        return QTensor(codes, scales, spec, (last - first, shape[1]))

    static = inputs if inputs in raw else None
    return Layer(weight, (shape[0], shape[1]), spec, f"fp8 e4m3, blocks of {spec.size} x {spec.columns}",
                 (weight, scale, *((inputs,) if static else ())), read, activation, static)


class Fp8Writer(Writer):
    """E4M3 codes and float32 scales of blocks, which are of one size in the whole model: the most frequent one that comes, else 128 x 128."""

    def __init__(self, options: WriterOptions) -> None:
        self.options = options
        blocks = Counter((s.size, s.columns) for s in options.specs.values() if (s.format, s.granularity) == ("fp8e4m3", "block"))
        rows, columns = blocks.most_common(1)[0][0] if blocks else (128, 128)
        self.spec = TensorSpec("fp8e4m3", "block", rows, columns)

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        if (spec.format, spec.granularity, spec.size, spec.columns) != ("fp8e4m3", "block", self.spec.size, self.spec.columns):
            return f"fine-grained FP8 holds E4M3 with a scale for each block of {self.spec.size} x {self.spec.columns}"
        return None

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        return self.spec

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Part]:
        parts = {name: Part("F8_E4M3", shape), _scale(name): Part("F32", spec.scale_shape(shape))}
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
        static = bool(found) and all(spec is not None and not spec.dynamic for spec in found)
        quantization: dict[str, Any] = {"quant_method": METHOD, "fmt": "e4m3", "weight_block_size": [self.spec.size, self.spec.columns],
                                        "activation_scheme": "static" if static else "dynamic"}
        if kept:
            quantization["modules_to_not_convert"] = [name.removesuffix(".weight") for name in kept]
        return {"quantization_config": quantization}


def _scale(name: str) -> str:
    return name.removesuffix("weight") + SCALE


def _inputs(name: str) -> str:
    return name.removesuffix("weight") + "activation_scale"


class Fp8Codec:
    def writer(self, options: WriterOptions) -> Fp8Writer:
        return Fp8Writer(options)

    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        return open_quantized(path, METHOD, _layers)


CODEC = Fp8Codec()
