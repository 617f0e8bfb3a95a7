"""One weight of a compressed-tensors checkpoint: from its stored tensors to a Layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import CheckpointError, SchemeError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._compressed_config import Group, number_format, size, strategy_of
from ._int_words import unpack, words
from ._json import shown
from ._nibbles import low_first
from ._quantized import Layer, Raw

SIDE = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale", "input_scale", "input_zero_point",
        "input_global_scale", "output_scale", "output_zero_point")
FLOATS = ("F32", "F16", "BF16")
SCALE_FORMATS = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}
MICRO = {"mxfp4": ("e8m0", 32), "mxfp8": ("e8m0", 32), "nvfp4": ("fp8e4m3", 16)}
Codes = Callable[[int, int], np.ndarray]


def make_layer(raw: Raw, module: str, group: Group, where: str) -> Layer:
    """The weight of a module. Raises CheckpointError naming the tensor that is missing or does not fit."""
    arguments = group.weight
    assert arguments is not None
    place = f"{where}: config_groups: {shown(group.name)[1:-1]}: weights"
    token = number_format(arguments, place, group.format)
    packed = f"{module}.weight_packed" in raw
    codes, shape, symmetric = (_packed if packed else _plain)(raw, module, token, arguments)
    spec = _spec(raw, module, token, arguments, symmetric, shape, place)
    scales = _scales(raw, module, spec, shape)
    zeros = None if symmetric else _zeros(raw, module, token, spec, shape, packed)
    order = _order(raw, module, spec, shape)
    outer = _outer(raw, module) if token == "nvfp4" else None

    def read(first: int, last: int) -> QTensor:
        cells = slice(first, last)
        if spec.granularity in ("tensor", "block"):
            cells = slice(None) if spec.granularity == "tensor" else slice(first // spec.size, -(-last // spec.size))
        some = None if zeros is None else zeros()[cells]
        return QTensor(_ordered(codes(first, last), order), scales()[cells], spec, (last - first, shape[1]), zeros=some, outer=outer, order=order)

    first = ("weight_packed" if packed else "weight", "weight_scale")
    parts = tuple(f"{module}.{part}" for part in (*first, *SIDE) if part in first or f"{module}.{part}" in raw)
    inputs = next((f"{module}.{name}" for name in ("input_scale", "input_global_scale") if f"{module}.{name}" in raw), None)
    if group.static is not None and f"{module}.{group.static}" not in raw:
        raise raw.error(f"{module}.{group.static}", "is missing: the config says that scales of inputs are stored",
                        "the checkpoint is incomplete: fetch it again")
    if f"{module}.input_zero_point" in raw and group.activation is not None and not group.activation.symmetric:
        inputs = None  # a scale is half of them only; who converts is told that they are missing
    label = f"{group.format or 'compressed-tensors'} {token}, {_cells(spec)}{'' if symmetric else ', zero points'}{', act-order' if order is not None else ''}"
    return Layer(f"{module}.weight", shape, spec, label, tuple(dict.fromkeys(parts)), read, group.activation, inputs,
                 reciprocal=inputs is not None and inputs.endswith("global_scale"))


def _plain(raw: Raw, module: str, token: str, arguments: Mapping[str, Any]) -> tuple[Codes, tuple[int, int], bool]:
    """A weight with a code in every byte."""
    name, symmetric = f"{module}.weight", _symmetric(raw, module, arguments)
    integers = token.startswith("int")
    dtypes = ("I8",) if integers else ("F8_E4M3",)
    rows, columns = raw.entry(name, dtypes, (None, None)).shape
    bits = int(token[3:]) if integers else 8

    def codes(first: int, last: int) -> np.ndarray:
        some = raw.array(name, dtypes)[first:last]
        if not integers:
            return some
        middle = 1 << (bits - 1)
        if bits < 8 and some.size and (int(some.min()) < -middle or int(some.max()) >= middle):
            raise raw.error(name, f"holds codes beyond {bits} bits")
        return some if symmetric else (some.view(np.uint8) ^ np.uint8(128)) - np.uint8(128 - middle)

    return codes, (rows, columns), symmetric


def _packed(raw: Raw, module: str, token: str, arguments: Mapping[str, Any]) -> tuple[Codes, tuple[int, int], bool]:
    """A weight in words of 32 bits (integers) or two to a byte (FP4)."""
    name, symmetric = f"{module}.weight_packed", _symmetric(raw, module, arguments)
    if token in ("mxfp4", "nvfp4"):
        rows, half = raw.entry(name, ("U8",), (None, None)).shape
        return (lambda first, last: low_first(raw.array(name, ("U8",))[first:last], 2 * half)), (rows, 2 * half), True
    if not token.startswith("int"):
        raise raw.error(name, f"is packed, which {token} is not")
    bits = int(token[3:])
    stored = raw.array(f"{module}.weight_shape", ("I64", "I32"), (2,))
    rows, columns = int(stored[0]), int(stored[1])
    held = raw.entry(name, ("I32",), (None, None)).shape
    if not (0 < rows < 1 << 31 and 0 < columns < 1 << 31) or held[0] != rows:
        raise raw.error(name, f"has {held[0]} rows, {module.rpartition('.')[2]}.weight_shape says {rows} x {columns}")
    zeros = raw.entries.get(f"{module}.weight_zero_point")
    packed_zeros = zeros is not None and not symmetric and zeros.dtype == "I32" and len(zeros.shape) == 2
    per_word = packing(held[1], columns, bits, packing(zeros.shape[0], rows, bits) if zeros is not None and packed_zeros else None)
    if per_word is None:
        raise raw.error(name, f"has {held[1]} words a row; {columns} values of {bits} bits take {words(columns, bits)}, "
                              f"or {-(-columns // (32 // bits))} padded ones")
    offset = np.int8(1 << (bits - 1)) if bits < 8 else None

    def codes(first: int, last: int) -> np.ndarray:
        some = _unpacked(raw.array(name, ("I32",))[first:last], bits, columns, per_word)
        if not symmetric:
            return some
        return (some ^ np.uint8(128)).view(np.int8) if offset is None else some.view(np.int8) - offset

    return codes, (rows, columns), symmetric


def packing(held: int, count: int, bits: int, sibling: int | None = None) -> int | None:
    """How `count` values lie in `held` words: 0 densely (since 2026), else that many to a word with unused bits above; None: in neither way.

    Both ways are the same where `bits` divides a word, and where one word holds all. Where only the number of words is the same (a few dozen values), it
    is that of `sibling`, the weight's zero points or codes, which were packed at the same time, else the dense one.
    """
    dense, padded = held == words(count, bits), held == -(-count // (32 // bits))
    if dense and padded:
        return sibling or 0
    return 0 if dense else 32 // bits if padded else None


def _unpacked(packed: np.ndarray, bits: int, count: int, per_word: int) -> np.ndarray:
    """uint8 [..., count]."""
    if not per_word:
        return unpack(packed, bits, count)
    fields = np.ascontiguousarray(packed).view(np.uint32)[..., None] >> np.arange(0, per_word * bits, bits, dtype=np.uint32)
    return (fields & np.uint32((1 << bits) - 1)).astype(np.uint8).reshape(*packed.shape[:-1], -1)[..., :count]


def _symmetric(raw: Raw, module: str, arguments: Mapping[str, Any]) -> bool:
    """What the config says; zero points must be there or not accordingly."""
    symmetric, name = arguments.get("symmetric", True) is not False, f"{module}.weight_zero_point"
    if not symmetric and name not in raw:
        raise raw.error(name, "is missing: the config says that weights have zero points", "the checkpoint is incomplete: fetch it again")
    if symmetric and name in raw:
        stored = raw.array(name, tuple(raw.entries[name].dtype for _ in (0,)))
        if raw.entries[name].dtype not in ("I8", "I32", "I64", "F8_E4M3", "BF16", "F16", "F32") or stored.any():
            raise raw.error(name, "is there and not zero, but the config says that weights are symmetric")
    return symmetric


def _spec(raw: Raw, module: str, token: str, arguments: Mapping[str, Any], symmetric: bool, shape: tuple[int, int], where: str) -> TensorSpec:
    name, strategy = f"{module}.weight_scale", strategy_of(arguments)
    try:
        if token in MICRO:
            scale_format, columns = MICRO[token]
            if arguments.get("group_size") not in (None, columns):
                raise CheckpointError(f"{token} has groups of {columns}, not {shown(arguments['group_size'])[1:-1]}", where=where)
            return TensorSpec(token, "group", columns, scale_format=scale_format)
        dtype = raw.entry(name, FLOATS).dtype
        if strategy == "group":
            return TensorSpec(token, "group", size(arguments, where), symmetric=symmetric, scale_format=SCALE_FORMATS[dtype])
        if strategy in ("channel", "tensor"):
            return TensorSpec(token, strategy, symmetric=symmetric, scale_format=SCALE_FORMATS[dtype])
        if strategy == "block":
            block = arguments.get("block_structure")
            if isinstance(block, str):
                block = [int(side) if side.isascii() and side.isdecimal() and len(side) < 8 else side for side in block.lower().split("x")]
            if not (isinstance(block, list) and len(block) == 2 and all(type(side) is int and 0 < side <= 1 << 20 for side in block)):
                raise CheckpointError(f"block_structure is {shown(block)}, not two whole numbers above 0", where=where)
            return TensorSpec(token, "block", block[0], block[1], symmetric=symmetric, scale_format=SCALE_FORMATS[dtype])
    except SchemeError as error:
        raise CheckpointError(error.what, where=where) from None
    raise CheckpointError(f"strategy is {shown(strategy)}, read are: tensor, channel, group, block, tensor_group", where=where)


def _scales(raw: Raw, module: str, spec: TensorSpec, shape: tuple[int, int]) -> Callable[[], np.ndarray]:
    name, wanted = f"{module}.weight_scale", spec.scale_shape(shape)
    held = raw.entry(name, ("U8", "F8_E8M0") if spec.scale_format == "e8m0" else ("F8_E4M3",) if spec.format == "nvfp4" else FLOATS).shape
    fits = held == wanted or (spec.granularity in ("tensor", "channel") and held in ((), (1,), (shape[0],)) and int(np.prod(held)) == wanted[0])
    if not fits:
        raise raw.error(name, f"has shape {list(held)}, expected {list(wanted)}")

    def scales() -> np.ndarray:
        if spec.scale_format == "e8m0":
            return raw.exponents(name)
        if spec.format == "nvfp4":
            return _fp8(raw.array(name, ("F8_E4M3",)))
        return raw.floats(name).reshape(wanted)

    return scales


def _fp8(codes: np.ndarray) -> np.ndarray:
    from .. import formats

    return np.asarray(formats.get("fp8e4m3").decode(codes), np.float32)


def _zeros(raw: Raw, module: str, token: str, spec: TensorSpec, shape: tuple[int, int], packed: bool) -> Callable[[], np.ndarray]:
    """Zero points of unsigned codes. Packed ones lie in words down the rows, moved as codes are; the others are signed bytes."""
    name, wanted = f"{module}.weight_zero_point", spec.scale_shape(shape)
    bits = int(token[3:])
    if not packed or raw.entry(name, ("I32", "I8")).dtype == "I8":
        held = raw.entry(name, ("I8",)).shape
        if held != wanted and not (spec.granularity in ("tensor", "channel") and int(np.prod(held)) == wanted[0]):
            raise raw.error(name, f"has shape {list(held)}, expected {list(wanted)}")
        return lambda: raw.array(name, ("I8",)).reshape(wanted).astype(np.float32) + np.float32(1 << (bits - 1))
    held = raw.entry(name, ("I32",), (None, wanted[1])).shape
    per_word = packing(held[0], wanted[0], bits, packing(raw.entry(f"{module}.weight_packed", ("I32",), (None, None)).shape[1], shape[1], bits))
    if per_word is None:
        raise raw.error(name, f"has {held[0]} words for {wanted[0]} rows of {bits} bits")
    return lambda: _unpacked(raw.array(name, ("I32",)).T, bits, wanted[0], per_word).T.astype(np.float32)


def _order(raw: Raw, module: str, spec: TensorSpec, shape: tuple[int, int]) -> np.ndarray | None:
    """Inputs in the order of their groups (act-order), None where they are in it already."""
    name = f"{module}.weight_g_idx"
    if name not in raw:
        return None
    index = raw.array(name, ("I32", "I64"), (shape[1],))
    groups = spec.scale_shape(shape)[1]
    if spec.granularity != "group":
        raise raw.error(name, "is there, but weights have no groups")
    if (index == -1).all():
        return None
    if index.min() < 0 or index.max() >= groups:
        raise raw.error(name, f"names groups from {index.min()} to {index.max()}, there are {groups}")
    order = np.argsort(index, kind="stable").astype(np.int32)
    if not np.array_equal(index[order], np.arange(shape[1]) // spec.size):
        raise raw.error(name, f"does not make groups of {spec.size} inputs", "unpack it with the library that made it, and take the unquantized model")
    return None if np.array_equal(order, np.arange(shape[1])) else order


def _ordered(codes: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """Codes lie in the order of the inputs in the file, by groups in a QTensor."""
    return codes if order is None else np.ascontiguousarray(codes[:, order])


def _outer(raw: Raw, module: str) -> Any:
    """What NVFP4's scales are divided by, as the factor that they are multiplied by."""
    name = f"{module}.weight_global_scale"
    value = raw.floats(name)
    if value.size != 1 or not (np.isfinite(value).all() and float(value.reshape(-1)[0]) > 0):
        raise raw.error(name, "is no number above 0")
    return np.float64(1) / np.float64(value.reshape(-1)[0])  # in float64, so that scale x factor is the quotient to the last bit of float32


def _cells(spec: TensorSpec) -> str:
    if spec.granularity == "group":
        return f"groups of {spec.size}"
    if spec.granularity == "block":
        return f"blocks of {spec.size} x {spec.columns}"
    return "one scale per row" if spec.granularity == "channel" else "one scale"
