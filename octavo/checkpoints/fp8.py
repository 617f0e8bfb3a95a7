"""fp8: E4M3 weights, as DeepSeek-V3 and Qwen3 publish them (fine-grained), as transformers' FineGrainedFP8Config and as AutoFP8 write them.

What it is: `X.weight` in E4M3 beside `X.weight_scale_inv`, one scale for each block (128 x 128 by default) of the weight; blocks at the edges are
ragged. Despite its name the scale multiplies. Without `weight_block_size` there is one scale for the whole weight (`weight_scale_inv`, or AutoFP8's
`weight_scale`). Scales are float32, bfloat16 or powers of two ("ue8m0"); DeepSeek-V4 calls them `X.scale` and has experts in MXFP4.
When to choose it: GPUs that multiply FP8 (Ada, Hopper, Blackwell).
Limits: E4M3 matrices; stacks of experts in one tensor are refused. Activations are quantized at run time, per token and 128 values ("dynamic"), or
with one stored scale per weight ("static"). What is written has float32 scales of blocks, 128 x 128 or as `--to fp8:64x64` says; transformers without
a GPU reads them only where they divide every width.
Source: DeepSeek-V3's README_WEIGHTS.md; transformers' fine-grained FP8 integration; vLLM's reader of AutoFP8's checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._cache_scales import is_cache_scale, with_cache
from ._folder import quant_method
from ._fp8_writer import METHOD, SCALE, Fp8Writer
from ._json import shown
from ._nibbles import low_first
from ._quantized import Layer, QuantizedCheckpoint, Raw, open_quantized, quantization_config
from .base import WriterOptions

SCALES = (SCALE, "weight_scale", "scale", "qscale_weight")
INPUTS = ("activation_scale", "input_scale", "qscale_act")
FLOATS = ("F32", "BF16", "F16")
EXPONENTS = ("F8_E8M0", "U8")
MXFP4 = TensorSpec("mxfp4", "group", 32, scale_format="e8m0")
MXFP8 = TensorSpec("mxfp8", "group", 32, scale_format="e8m0")
NAMES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16", "F8_E8M0": "e8m0", "U8": "e8m0"}


def _layers(config: dict[str, Any], quantization: dict[str, Any], raw: Raw) -> Iterator[Layer]:
    block, static = _block(quantization, raw.path), quantization.get("activation_scheme", "dynamic") == "static"
    for name in raw.entries:
        stem, _, kind = name.rpartition(".")
        if kind in SCALES and stem and f"{stem}.weight" in raw and raw.entries[f"{stem}.weight"].dtype in ("F8_E4M3", "I8", "F4"):
            yield fp8_layer(f"{stem}.", kind, block, static, raw)


def _block(quantization: dict[str, Any], path: Path) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None for one scale per weight."""
    where = f"{path / 'config.json'}: quantization_config"
    if (fmt := quantization.get("fmt", "e4m3")) not in ("e4m3", "float8_e4m3fn"):
        raise CheckpointError(f"fmt is {shown(fmt)}, only e4m3 is read", where=where)
    if (scheme := quantization.get("activation_scheme", "dynamic")) not in ("dynamic", "static"):
        raise CheckpointError(f"activation_scheme is {shown(scheme)}, known are dynamic and static", where=where)
    size = quantization.get("weight_block_size")
    if size is None:
        return None
    if not (isinstance(size, list) and len(size) == 2 and all(type(s) is int and 0 < s <= 1 << 20 for s in size)):
        raise CheckpointError(f"weight_block_size is {shown(size)}, not two whole numbers above 0", where=where)
    return size[0], size[1]


def fp8_layer(prefix: str, kind: str, block: tuple[int, int] | None, static: bool, raw: Raw) -> Layer:
    """The weight `prefix`weight with its scales `prefix``kind`, of blocks or as their shape says: one, or one per row."""
    weight, scale = f"{prefix}weight", f"{prefix}{kind}"
    entry = raw.entry(weight, ("F8_E4M3", "I8", "F4"), (None, None))
    packed = entry.dtype != "F8_E4M3"  # two E2M1 values to a byte; F4 counts values, I8 bytes
    rows, columns = entry.shape[0], entry.shape[1] * (2 if entry.dtype == "I8" else 1)
    if columns % 2 and packed:
        raise raw.error(weight, "has rows that end within a byte")
    spec = MXFP4 if packed else _spec(block, (rows, columns), scale, raw)
    stored = raw.entry(scale, EXPONENTS if packed or spec == MXFP8 else (*FLOATS, *EXPONENTS))
    wanted = spec.scale_shape((rows, columns))
    if stored.shape != wanted and not (spec.granularity in ("tensor", "channel") and math.prod(stored.shape) == math.prod(wanted)):
        raise raw.error(scale, f"has shape {list(stored.shape)}, expected {list(wanted)}")
    inputs = next((prefix + name for name in INPUTS if prefix + name in raw), None)
    if static and inputs is None:
        raise raw.error(prefix + INPUTS[0], "is missing, though activation_scheme is static", "the checkpoint is incomplete: fetch it again")
    if inputs is not None and math.prod(raw.entry(inputs, FLOATS).shape) != 1:
        raise raw.error(inputs, "holds more than one scale")

    def read(first: int, last: int) -> QTensor:
        codes = raw.array(weight, (entry.dtype,)).reshape(rows, -1)[first:last]
        scales = (raw.exponents(scale) if stored.dtype in EXPONENTS else raw.floats(scale)).reshape(wanted)
        if spec.granularity != "tensor":
            cell = spec.size if spec.granularity == "block" else 1
            scales = scales[first // cell : -(-last // cell)]
        codes = low_first(codes.view(np.uint8), columns) if packed else codes
        return QTensor(codes, scales, spec, (last - first, columns))

    parts = (weight, scale, *((inputs,) if inputs else ()))
    return Layer(weight, (rows, columns), spec, _label(spec), parts, read, _activation(spec, static), inputs if static else None)


def _spec(block: tuple[int, int] | None, shape: tuple[int, int], scale: str, raw: Raw) -> TensorSpec:
    entry = raw.entry(scale, (*FLOATS, *EXPONENTS))
    numbers = NAMES[entry.dtype]
    if block is not None:
        return MXFP8 if block == (1, 32) and numbers == "e8m0" else TensorSpec("fp8e4m3", "block", *block, scale_format=numbers)
    granularity = "tensor" if math.prod(entry.shape) == 1 and shape[0] != 1 else "channel"
    return TensorSpec("fp8e4m3", granularity, scale_format=numbers)


def _activation(spec: TensorSpec, static: bool) -> TensorSpec:
    if static:
        return TensorSpec("fp8e4m3", "tensor")
    if spec == MXFP8:
        return TensorSpec("mxfp8", "group", 32, scale_format="e8m0", dynamic=True)
    if spec.granularity == "block":
        return TensorSpec("fp8e4m3", "group", spec.columns, dynamic=True)
    return TensorSpec("fp8e4m3", "group", 128, dynamic=True) if spec == MXFP4 else TensorSpec("fp8e4m3", "token", dynamic=True)


def _label(spec: TensorSpec) -> str:
    if spec.format != "fp8e4m3":
        return f"{spec.format} in an fp8 checkpoint"
    scales = "" if spec.scale_format == "fp32" else f", {spec.scale_format} scales"
    return f"fp8 e4m3, blocks of {spec.size} x {spec.columns}{scales}" if spec.granularity == "block" else f"fp8 e4m3, per {spec.granularity}{scales}"


class Fp8Codec:
    def writer(self, options: WriterOptions) -> Fp8Writer:
        return Fp8Writer(options)

    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        checkpoint = open_quantized(path, METHOD, _layers, used=is_cache_scale)
        scheme = quantization_config(path).get("kv_cache_scheme")
        return with_cache(checkpoint, TensorSpec("fp8e4m3", "tensor") if scheme or checkpoint.cache_scales() else None)


CODEC = Fp8Codec()
