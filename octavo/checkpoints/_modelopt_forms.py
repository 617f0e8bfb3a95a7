"""How ModelOpt stores a weight in each of its algorithms: `X.weight` beside `X.weight_scale` and, where the algorithm has them, `weight_scale_2`,
`input_scale` and `pre_quant_scale` (factors of the inputs that were not folded into the layer before).

Source: NVIDIA ModelOpt, torch/export/quant_utils.py and unified_export_hf.py; quantization/qtensor/*.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import formats
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._json import shown
from ._nibbles import low_first
from ._quantized import Layer, Raw

FLOATS = ("F32", "BF16", "F16")
SCALE_FORMATS = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
NVFP4 = TensorSpec("nvfp4", "group", 16, scale_format="fp8e4m3")
NVFP4_INPUTS = TensorSpec("nvfp4", "group", 16, scale_format="fp8e4m3", dynamic=True)
MXFP4 = TensorSpec("mxfp4", "group", 32, scale_format="e8m0")
MXFP8 = TensorSpec("mxfp8", "group", 32, scale_format="e8m0")
MXFP8_INPUTS = TensorSpec("mxfp8", "group", 32, scale_format="e8m0", dynamic=True)
FP8_INPUTS, INT8_INPUTS = TensorSpec("fp8e4m3", "tensor"), TensorSpec("int8", "tensor")
TOKEN_INPUTS = TensorSpec("fp8e4m3", "token", dynamic=True)
BLOCK = 128  # FP8_PB_WO, which stores no size

Weight = tuple[tuple[int, int], TensorSpec, Callable[[int, int], QTensor]]


@dataclass(frozen=True)
class Form:
    """read gives (shape, spec, rows) of the weight with this prefix; inputs is what its inputs are quantized to."""

    read: Callable[[str, int | None, Raw], Weight]
    inputs: TensorSpec | None = None


def modelopt_layer(prefix: str, algorithm: str, group: int | None, raw: Raw) -> Layer:
    """The weight `prefix`weight, stored by `algorithm` (a key of FORMS), in groups of `group` where the config says so."""
    form = FORMS[algorithm]
    shape, spec, read = form.read(prefix, group, raw)
    names = ("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
    parts = tuple(prefix + name for name in names if prefix + name in raw)
    if (lora := f"{prefix}svdquant_lora_a") in raw:
        raise raw.error(lora, "adds a product of two matrices (SVDQuant), which is not read", "export the model with NVFP4 instead")
    inputs = f"{prefix}input_scale" if f"{prefix}input_scale" in raw else None
    if inputs is not None and math.prod(raw.entry(inputs, FLOATS).shape) != 1:
        raise raw.error(inputs, "holds more than one scale")
    smoothing = f"{prefix}pre_quant_scale"
    if smoothing in raw and math.prod(raw.entry(smoothing, FLOATS).shape) != shape[1]:
        raise raw.error(smoothing, f"has shape {list(raw.entries[smoothing].shape)}, expected [{shape[1]}]")

    def rows(first: int, last: int) -> QTensor:
        tensor = read(first, last)
        if smoothing not in raw:
            return tensor
        return QTensor(tensor.codes, tensor.scales, spec, tensor.shape, outer=tensor.outer, factors=raw.floats(smoothing).reshape(-1))

    # Without a stored scale there is nothing to quantize inputs by, except where they are quantized as they come.
    activation = form.inputs if form.inputs is not None and (form.inputs.dynamic or inputs) else None
    static = inputs if activation is not None else None
    return Layer(f"{prefix}weight", shape, spec, f"modelopt {algorithm}", parts, rows, activation, static)


def _eight_bit(format: str, dtype: str) -> Callable[[str, int | None, Raw], Weight]:
    """One scale, or one per row."""
    def read(prefix: str, group: int | None, raw: Raw) -> Weight:
        weight, scale = f"{prefix}weight", f"{prefix}weight_scale"
        rows, columns = raw.entry(weight, (dtype,), (None, None)).shape
        entry = raw.entry(scale, FLOATS)
        if (count := math.prod(entry.shape)) not in (1, rows):
            raise raw.error(scale, f"has shape {list(entry.shape)}, expected one scale or {rows}")
        spec = TensorSpec(format, "channel" if count == rows else "tensor", scale_format=SCALE_FORMATS[entry.dtype])

        def part(first: int, last: int) -> QTensor:
            scales = raw.floats(scale).reshape(-1, 1)
            return QTensor(raw.array(weight, (dtype,))[first:last], scales[first:last] if count == rows else scales, spec, (last - first, columns))

        return (rows, columns), spec, part

    return read


def _fp8_blocks(prefix: str, group: int | None, raw: Raw) -> Weight:
    weight, scale = f"{prefix}weight", f"{prefix}weight_scale"
    rows, columns = raw.entry(weight, ("F8_E4M3",), (None, None)).shape
    spec = TensorSpec("fp8e4m3", "block", group or BLOCK, group or BLOCK)
    grid = spec.scale_shape((rows, columns))
    if raw.entry(scale, FLOATS).shape not in (grid, (grid[0], 1, grid[1], 1)):
        raise raw.error(scale, f"has shape {list(raw.entries[scale].shape)}, expected {list(grid)}")

    def part(first: int, last: int) -> QTensor:
        scales = raw.floats(scale).reshape(grid)[first // spec.size : -(-last // spec.size)]
        return QTensor(raw.array(weight, ("F8_E4M3",))[first:last], scales, spec, (last - first, columns))

    return (rows, columns), spec, part


def _mxfp8(prefix: str, group: int | None, raw: Raw) -> Weight:
    weight, scale = f"{prefix}weight", f"{prefix}weight_scale"
    rows, columns = raw.entry(weight, ("F8_E4M3",), (None, None)).shape
    raw.entry(scale, ("U8", "F8_E8M0"), MXFP8.scale_shape((rows, columns)))

    def part(first: int, last: int) -> QTensor:
        return QTensor(raw.array(weight, ("F8_E4M3",))[first:last], raw.exponents(scale, rows=slice(first, last)), MXFP8, (last - first, columns))

    return (rows, columns), MXFP8, part


def _four_bit_floats(spec: TensorSpec, scale_dtypes: tuple[str, ...]) -> Callable[[str, int | None, Raw], Weight]:
    """E2M1, two to a byte, the even one in the low half."""
    def read(prefix: str, group: int | None, raw: Raw) -> Weight:
        weight, scale, outer = f"{prefix}weight", f"{prefix}weight_scale", f"{prefix}weight_scale_2"
        rows, half = raw.entry(weight, ("U8",), (None, None)).shape
        columns, groups = 2 * half, raw.entry(scale, scale_dtypes, (rows, None)).shape[1]
        size = group or (columns // groups if groups else 0)  # config.json alone does not say it for all algorithms
        if not size or size % spec.size or columns != size * groups:
            raise raw.error(scale, f"has shape [{rows}, {groups}]: {columns} columns in groups of {size or 'nothing'} are no multiple of {spec.size}")
        two = spec.format == "nvfp4"
        if two and math.prod(raw.entry(outer, ("F32",)).shape) != 1:
            raise raw.error(outer, "holds more than one scale")

        def part(first: int, last: int) -> QTensor:
            codes = low_first(raw.array(weight, ("U8",))[first:last], columns)
            if not two:
                scales: np.ndarray = raw.exponents(scale, rows=slice(first, last))
            else:
                scales = formats.get("fp8e4m3").decode(raw.array(scale, scale_dtypes)[first:last])
            scales = np.repeat(scales, size // spec.size, axis=1)  # groups of 32 (W4A8_NVFP4_FP8) are pairs of 16 with one scale
            if not two:
                return QTensor(codes, scales, spec, (last - first, columns))
            return QTensor(codes, scales, spec, (last - first, columns), outer=np.asarray(raw.floats(outer).reshape(())))

        return (rows, columns), spec, part

    return read


def _int4(prefix: str, group: int | None, raw: Raw) -> Weight:
    """Two's complement, two rows to a byte: row 2i in the low half, row 2i + 1 in the high one."""
    weight, scale = f"{prefix}weight", f"{prefix}weight_scale"
    half, columns = raw.entry(weight, ("U8",), (None, None)).shape
    entry = raw.entry(scale, FLOATS, (2 * half, None))
    groups = entry.shape[1]
    size = columns // groups if groups else 0
    if not size or size * groups != columns or (group is not None and group not in (0, size)):
        raise raw.error(scale, f"has shape {list(entry.shape)}, which are no groups of {group or 'equal length'} of {columns} columns")
    spec = TensorSpec("int4", "group", size, scale_format=SCALE_FORMATS[entry.dtype])

    def part(first: int, last: int) -> QTensor:
        packed = raw.array(weight, ("U8",))[first // 2 : -(-last // 2)]
        codes = np.empty((len(packed), 2, columns), np.uint8)
        codes[:, 0], codes[:, 1] = packed << 4, packed & 0xF0
        signed = codes.reshape(-1, columns)[first % 2 : first % 2 + last - first].view(np.int8) >> 4
        return QTensor(signed, raw.floats(scale, rows=slice(first, last)), spec, (last - first, columns))

    return (2 * half, columns), spec, part


def known_algorithm(name: object) -> str | None:
    """The key of FORMS that a config's `quant_algo` means, or None."""
    found = SPELLINGS.get(str(name).upper(), str(name).upper())
    return found if found in FORMS else None


def refused(name: object) -> str:
    """Why an algorithm is not read, and what to do."""
    if str(name).upper() in ("NVFP4_SVD", "NVFP4_SVDQUANT"):
        return "SVDQuant adds a product of two matrices (svdquant_lora) to each weight, which is not read"
    return f"the algorithm {shown(name)} is not known; known: {', '.join(FORMS)}"


_nvfp4, _mxfp4 = _four_bit_floats(NVFP4, ("F8_E4M3",)), _four_bit_floats(MXFP4, ("U8", "F8_E8M0"))
FORMS = {
    "FP8": Form(_eight_bit("fp8e4m3", "F8_E4M3"), FP8_INPUTS), "FP8_PER_CHANNEL_PER_TOKEN": Form(_eight_bit("fp8e4m3", "F8_E4M3"), TOKEN_INPUTS),
    "FP8_PB_WO": Form(_fp8_blocks), "W8A16": Form(_eight_bit("int8", "I8")), "W8A8_SQ_PER_CHANNEL": Form(_eight_bit("int8", "I8"), INT8_INPUTS),
    "W4A16_AWQ": Form(_int4), "W4A8_AWQ": Form(_int4, FP8_INPUTS), "NVFP4": Form(_nvfp4, NVFP4_INPUTS), "NVFP4_AWQ": Form(_nvfp4, NVFP4_INPUTS),
    "W4A16_NVFP4": Form(_nvfp4), "W4A8_NVFP4_FP8": Form(_nvfp4, FP8_INPUTS), "W4A8_MXFP4_FP8": Form(_mxfp4, FP8_INPUTS), "MXFP4": Form(_mxfp4),
    "MXFP8": Form(_mxfp8, MXFP8_INPUTS),
}
SPELLINGS = {"FP8_PB_REAL": "FP8_PB_WO", "INT4_AWQ": "W4A16_AWQ", "INT8_WO": "W8A16", "INT8_SQ": "W8A8_SQ_PER_CHANNEL",
             "FP8_PC_PT": "FP8_PER_CHANNEL_PER_TOKEN"}
