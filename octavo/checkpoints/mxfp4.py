"""mxfp4: experts in MXFP4 as gpt-oss is published.

What it is: for each layer `mlp.experts.gate_up_proj_blocks`, uint8 [experts, out, in / 32, 16] with two E2M1 values to a byte, the even one in the low
half, beside `gate_up_proj_scales`, uint8 exponents [experts, out, in / 32] (value * 2^(scale - 127)); the same for `down_proj`. All else is bfloat16.
Here each expert's matrix has a name of its own: `...experts.{i}.gate_up_proj.weight` [out, in], its rows as stored: gate and up take turns (even rows
are gate's). Biases stay stacks: `...experts.gate_up_proj_bias` [experts, out].
When to choose it: gpt-oss. This form holds experts and nothing else, so `--to mxfp4` writes layers of any kind as compressed-tensors'
mxfp4-pack-quantized, which vLLM and transformers read.
Limits: the layout of the `original/` folders (`mlp1_weight.blocks`) is not read.
Source: transformers, integrations/mxfp4.py; OCP Microscaling Formats (MX) Specification 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._compressed_writer import CompressedTensorsWriter
from ._folder import quant_method
from ._nibbles import low_first
from ._quantized import Layer, QuantizedCheckpoint, Raw, decoded_exponents, open_quantized
from .base import WriterOptions

METHOD = "mxfp4"
SPEC = TensorSpec("mxfp4", "group", 32, scale_format="e8m0")
BLOCKS, SCALES = "_blocks", "_scales"
MOST_EXPERTS = 1 << 16


def _layers(config: dict[str, Any], quantization: dict[str, Any], raw: Raw) -> Iterator[Layer]:
    for name in raw.entries:
        if name.endswith(BLOCKS):
            yield from _experts(name.removesuffix(BLOCKS), raw)


def _experts(stem: str, raw: Raw) -> Iterator[Layer]:
    """One layer for each expert of the stack `stem`: "....experts.gate_up_proj"."""
    blocks, scales = stem + BLOCKS, stem + SCALES
    number, rows, groups, _ = raw.entry(blocks, ("U8",), (None, None, None, 16)).shape
    if not 0 < number <= MOST_EXPERTS or 0 in (rows, groups):
        raise raw.error(blocks, f"has shape {list(raw.entries[blocks].shape)}, which is no stack of experts")
    raw.entry(scales, ("U8", "F8_E8M0"), (number, rows, groups))
    parent, _, projection = stem.rpartition(".")
    shape = (rows, groups * 32)

    def reader(expert: int) -> Layer:
        def read(first: int, last: int) -> QTensor:
            packed = raw.array(blocks, ("U8",))[expert, first:last].reshape(last - first, -1)
            exponents = raw.array(scales, ("U8", "F8_E8M0"))[expert, first:last]
            return QTensor(low_first(packed, shape[1]), decoded_exponents(exponents), SPEC, (last - first, shape[1]))

        return Layer(f"{parent}.{expert}.{projection}.weight", shape, SPEC, "mxfp4 experts", (blocks, scales), read, stack=(expert, number))

    for expert in range(number):
        yield reader(expert)


class Mxfp4Writer(CompressedTensorsWriter):
    """compressed-tensors, with every weight in MXFP4."""

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        return super().why_not(name, spec, shape) if spec == SPEC else f"MXFP4 has groups of 32 with E8M0 scales, this is {spec.format}"

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        return SPEC if shape[1] % 32 == 0 else TensorSpec("fp8e4m3", "channel")


class Mxfp4Codec:
    def writer(self, options: WriterOptions) -> Mxfp4Writer:
        return Mxfp4Writer(options)

    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        return open_quantized(path, METHOD, _layers)


CODEC = Mxfp4Codec()
