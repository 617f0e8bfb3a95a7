"""torchao: weights of PyTorch's torchao as transformers saves them to safetensors.

What it is: a tensor subclass taken apart: `X._weight_qdata`, `X._weight_scale` and the like, and in the safetensors header, under `X.weight`, a JSON with
the class's name and settings. Read are Int8Tensor, IntxUnpackedToInt8Tensor (1 to 8 bits, a byte each), Int4Tensor (two to a byte) and Float8Tensor.
When to choose it: models quantized within PyTorch. For handing a model on, compressed-tensors is read by more programs.
Limits: layouts made for one kind of kernel (Int4TilePackedTo4dTensor, Int4PlainInt32Tensor, ...) and torchao's prototypes (MXTensor, NVFP4Tensor) are
refused; so are pickled checkpoints, which is how torchao before 0.14 saves. Int4Tensor's zero point is an offset in the unit of the weight; here it is
moved to the smallest code, which may round its last bit.
Source: torchao, prototype/safetensors and quantization/quantize_/workflows; FBGEMM, gen_ai/quantize.py (Int4Tensor).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._folder import quant_method
from ._json import parse_object, shown
from ._nibbles import low_first
from ._quantized import Layer, QuantizedCheckpoint, Raw, open_quantized
from ._safetensors_header import read_metadata

METHOD = "torchao"
FLOATS = ("F32", "BF16", "F16")
SCALE_FORMATS = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
Read = Callable[[int, int], QTensor]


@dataclass(frozen=True)
class Subclass:
    """One weight taken apart: its name, what the header says of it, and its tensors by their role (qdata, scale, ...)."""

    name: str
    kind: str
    said: dict[str, Any]
    parts: dict[str, str]
    raw: Raw

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"tensor {shown(self.name)} {what}", where=str(self.raw.path),
                               remedy="quantize the model again with Int8WeightOnlyConfig or Float8WeightOnlyConfig, or take the unquantized model")

    def part(self, role: str) -> str:
        """The full name of a tensor that must be there."""
        if role not in self.parts:
            raise self.error(f"of class {self.kind} has no {role}")
        return self.parts[role]


def _layers(config: dict[str, Any], quantization: dict[str, Any], raw: Raw) -> Iterator[Layer]:
    said: dict[str, str] = {}
    for home in {id(home): home for home in raw.homes.values()}.values():
        said |= read_metadata(home)
    listed = said.get("tensor_names")
    if listed is None:
        raise CheckpointError("has no torchao metadata in its header (`tensor_names`)", where=str(raw.path),
                              remedy="save it again with torchao 0.14 or later and transformers' save_pretrained, which keeps the classes there")
    for name, text in said.items():
        stem, _, parameter = name.rpartition(".")
        if name in ("tensor_names", "format") or not stem:
            continue
        entry = parse_object(text.encode(), f"{raw.path}: header: {shown(name)}")
        kind, data, roles = entry.get("_type"), entry.get("_data"), entry.get("_tensor_data_names")
        if kind == "Tensor":
            continue
        if not isinstance(kind, str) or not isinstance(data, dict) or not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise CheckpointError(f"header: {shown(name)} has no class, settings and parts", where=str(raw.path), remedy="fetch the model again")
        parts = {role: f"{stem}._{parameter}_{role}" for role in roles}
        yield _layer(Subclass(name, kind, data, parts, raw))


def _layer(tensor: Subclass) -> Layer:
    if tensor.kind not in CLASSES:
        raise tensor.error(f"is of class {shown(tensor.kind)}, whose layout is made for one kind of kernel or still changes; read are {', '.join(CLASSES)}")
    shape, spec, read = CLASSES[tensor.kind](tensor)
    smoothing = tensor.parts.get("act_pre_scale")
    if smoothing is not None and math.prod(tensor.raw.entry(smoothing, FLOATS).shape) != shape[1]:
        raise tensor.error(f"has inputs scaled by {math.prod(tensor.raw.entry(smoothing, FLOATS).shape)} factors, and {shape[1]} inputs")
    activation, inputs = _activation(tensor)

    def rows(first: int, last: int) -> QTensor:
        made = read(first, last)
        if smoothing is None:
            return made
        factors = tensor.raw.floats(smoothing).reshape(-1)
        return QTensor(made.codes, made.scales, spec, made.shape, made.zeros, made.offsets, factors=factors)

    return Layer(tensor.name, shape, spec, f"torchao {tensor.kind}", tuple(tensor.parts.values()), rows, activation, inputs)


def _activation(tensor: Subclass) -> tuple[TensorSpec | None, str | None]:
    """(what inputs are quantized to, the stored scale of it)."""
    said, inputs = tensor.said.get("act_quant_kwargs"), tensor.parts.get("act_quant_scale")
    if tensor.kind == "IntxUnpackedToInt8Tensor":
        found = tensor.said.get("activation_quantization")
        if found is None:
            return None, None
        if _value(found) not in ("int8_asym_per_token", "INT8_ASYM_PER_TOKEN"):
            raise tensor.error(f"quantizes its inputs by {shown(_value(found))}, which is not known")
        return TensorSpec("int8", "token", symmetric=False, dynamic=True), None
    if said is None:
        return None, None
    settings = said.get("_data") if isinstance(said, dict) else None
    granularity = settings.get("granularity") if isinstance(settings, dict) else None
    kind = granularity.get("_type") if isinstance(granularity, dict) else None
    if not isinstance(settings, dict) or kind not in ("PerRow", "PerTensor"):
        raise tensor.error(f"quantizes its inputs {shown(kind)}, which is not known")
    number = "fp8e4m3" if tensor.kind == "Float8Tensor" else "int8"
    if inputs is not None:
        if math.prod(tensor.raw.entry(inputs, FLOATS).shape) != 1 or "act_quant_zero_point" in tensor.parts:
            raise tensor.error("has stored scales of its inputs that are not one alone")
        return TensorSpec(number, "tensor"), inputs
    symmetric = _value(settings.get("mapping_type")) != "ASYMMETRIC"
    return TensorSpec(number, "token" if kind == "PerRow" else "tensor", symmetric=symmetric, dynamic=True), None


def _value(entry: Any) -> Any:
    """A constant as the header writes it: {"_type": ..., "_data": its name}, or the name."""
    return entry.get("_data") if isinstance(entry, dict) else entry


def _granularity(tensor: Subclass, shape: tuple[int, int], grid: tuple[int, ...]) -> tuple[str, int, int]:
    """(granularity, size, columns) of block_size, which must fit the grid of scales."""
    block = tensor.said.get("block_size")
    if tensor.kind == "Float8Tensor" and not block:
        block = list(shape)  # older files: one scale for all
    if not (isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)):
        raise tensor.error(f"has block_size {shown(block)}, not two whole numbers above 0")
    rows, columns = block
    if rows > shape[0] or columns > shape[1] or shape[0] % rows or shape[1] % columns:
        raise tensor.error(f"is {shape[0]} x {shape[1]}, which blocks of {rows} x {columns} do not divide")
    if math.prod(grid) != (shape[0] // rows) * (shape[1] // columns):
        raise tensor.error(f"has scales of shape {list(grid)}, blocks of {rows} x {columns} need {shape[0] // rows} x {shape[1] // columns}")
    if rows == 1:
        return ("channel", 0, 0) if columns == shape[1] else ("group", columns, 0)
    return ("tensor", 0, 0) if (rows, columns) == shape else ("block", rows, columns)


def _floats8(tensor: Subclass) -> tuple[tuple[int, int], TensorSpec, Read]:
    data, scale, raw = tensor.part("qdata"), tensor.part("scale"), tensor.raw
    entry = raw.entry(data, ("F8_E4M3", "F8_E5M2"), (None, None))
    shape, stored = (entry.shape[0], entry.shape[1]), raw.entry(scale, FLOATS)
    number = "fp8e4m3" if entry.dtype == "F8_E4M3" else "fp8e5m2"
    spec = TensorSpec(number, *_granularity(tensor, shape, stored.shape), scale_format=SCALE_FORMATS[stored.dtype])

    def read(first: int, last: int) -> QTensor:
        return QTensor(raw.array(data, (entry.dtype,))[first:last], _rows(raw.floats(scale), spec, shape, first, last), spec, (last - first, shape[1]))

    return shape, spec, read


def _integers(tensor: Subclass) -> tuple[tuple[int, int], TensorSpec, Read]:
    """A byte to each code; (code - zero point) * scale."""
    data, scale, zero, raw = tensor.part("qdata"), tensor.part("scale"), tensor.parts.get("zero_point"), tensor.raw
    entry, stored = raw.entry(data, ("I8",), (None, None)), raw.entry(scale, FLOATS)
    shape = (entry.shape[0], entry.shape[1])
    bits = 8
    if tensor.kind != "Int8Tensor":
        found = str(_value(tensor.said.get("target_dtype"))).removeprefix("torch.")
        if found not in {f"int{n}" for n in range(1, 9)}:
            raise tensor.error(f"has target_dtype {shown(found)}, not int1 to int8")
        bits = max(int(found[3:]), 2)  # int1 is -1 and 0
    granularity = _granularity(tensor, shape, stored.shape)
    zeros = None
    if zero is not None:
        if math.prod(raw.entry(zero, ("I8", *FLOATS)).shape) != math.prod(stored.shape):
            raise tensor.error(f"has zero points of shape {list(raw.entries[zero].shape)}, and scales of shape {list(stored.shape)}")
        zeros = raw.array(zero, ("I8",)).astype(np.float32) if raw.entries[zero].dtype == "I8" else raw.floats(zero)
        if not np.array_equal(zeros, np.round(zeros)):
            raise tensor.error("has zero points that are no whole numbers")
    middle = 1 << bits - 1
    asymmetric = zeros is not None and bool(zeros.any())
    spec = TensorSpec(f"int{bits}", *granularity, symmetric=not asymmetric, scale_format=SCALE_FORMATS[stored.dtype])

    def read(first: int, last: int) -> QTensor:
        codes = raw.array(data, ("I8",))[first:last]
        if bits < 8 and codes.size and not -middle <= int(codes.min()) <= int(codes.max()) < middle:
            raise raw.error(data, f"holds codes beyond {bits} bits", "the weights are damaged: fetch them again")
        scales = _rows(raw.floats(scale), spec, shape, first, last)
        if not asymmetric or zeros is None:
            return QTensor(codes, scales, spec, (last - first, shape[1]))
        shifted = (codes.astype(np.int16) + middle).astype(np.uint8)
        return QTensor(shifted, scales, spec, (last - first, shape[1]), zeros=_rows(zeros + middle, spec, shape, first, last))

    return shape, spec, read


def _int4(tensor: Subclass) -> tuple[tuple[int, int], TensorSpec, Read]:
    """Two's complement, the even code in the low half of a byte; code * scale + zero point, both [groups, out]."""
    data, scale, zero, raw = tensor.part("qdata"), tensor.part("scale"), tensor.part("zero_point"), tensor.raw
    entry = raw.entry(data, ("I8", "U8"), (None, None))
    shape = (entry.shape[0], 2 * entry.shape[1])
    stored = raw.entry(scale, FLOATS, (None, shape[0]))
    raw.entry(zero, FLOATS, stored.shape)
    if list(_value(tensor.said.get("shape")) or shape) != list(shape):
        raise tensor.error(f"says shape {shown(tensor.said.get('shape'))}, its codes have {list(shape)}")
    granularity = _granularity(tensor, shape, stored.shape)
    if granularity[0] not in ("group", "channel"):
        raise tensor.error("has scales that cross rows")
    symmetric = not bool(raw.floats(zero).any())
    spec = TensorSpec("int4", *granularity, symmetric=symmetric, scale_format=SCALE_FORMATS[stored.dtype])

    def read(first: int, last: int) -> QTensor:
        codes = low_first(raw.array(data, ("I8", "U8"))[first:last].view(np.uint8), shape[1])
        scales = np.ascontiguousarray(raw.floats(scale)[:, first:last].T)
        if symmetric:
            return QTensor((codes << 4).view(np.int8) >> 4, scales, spec, (last - first, shape[1]))
        offsets = raw.floats(zero)[:, first:last].T - 8 * scales
        return QTensor(codes ^ 8, scales, spec, (last - first, shape[1]), offsets=offsets)

    return shape, spec, read


def _rows(values: np.ndarray, spec: TensorSpec, shape: tuple[int, int], first: int, last: int) -> np.ndarray:
    """Scales of rows [first, last), whatever shape the file gives their grid."""
    grid = values.reshape(spec.scale_shape(shape))
    if spec.granularity == "tensor":
        return grid
    cell = spec.size if spec.granularity == "block" else 1
    return grid[first // cell : -(-last // cell)]


CLASSES: dict[str, Callable[[Subclass], tuple[tuple[int, int], TensorSpec, Read]]] = {
    "Int8Tensor": _integers, "IntxUnpackedToInt8Tensor": _integers, "Int4Tensor": _int4, "Float8Tensor": _floats8}


class TorchaoCodec:
    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        return open_quantized(path, METHOD, _layers)


CODEC = TorchaoCodec()
