"""bitsandbytes: weights in NF4, FP4 or INT8 as bitsandbytes (QLoRA, LLM.int8()) stores them through transformers.

What it is: NF4 or FP4: `X.weight` holds the whole weight as one run of nibbles, the first in the high half of a byte, beside `X.weight.absmax`, one
scale for each block (64 values by default) of that run, and a small JSON in `X.weight.quant_state.bitsandbytes__nf4`. With double quantization the
scales are bytes: absmax = table[byte] * nested_absmax + offset. INT8: `X.weight` with `X.SCB`, the largest magnitude of each row.
When to choose it: adapters trained with QLoRA; hubs hold many such models. For serving, other 4-bit formats are faster everywhere.
Limits: blocks know no rows: where the width is no multiple of the block, scales are repeated for groups of their greatest common divisor. The other
tables (int4, af4) and INT8 in tiles for old GPUs are refused. INT8 with a threshold (LLM.int8(): inputs from it on stay 16-bit, the others become
int8): as stored all inputs stay in 16 bits, which loses less; `--quantization LLM.int8()` runs the stored codes in that arithmetic.
Source: bitsandbytes, functional.py (QuantState, dequantize_4bit, dequantize_blockwise) and nn/modules.py (Linear8bitLt); arXiv 2305.14314, 2208.07339.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import formats
from ..errors import CheckpointError, SchemeError
from ..qtensor import QTensor
from ..schemes import TensorSpec, write_tensor
from ._bitsandbytes_writer import BLOCKS, FORMATS, METHOD, STATE, BitsandbytesWriter
from ._folder import quant_method
from ._json import parse_object, shown
from ._quantized import Layer, QuantizedCheckpoint, Raw, open_quantized, quantization_config
from .base import WriterOptions

STORAGE = ("U8", "I8", "BF16", "F16", "F32", "F64")  # bnb_4bit_quant_storage: the same bytes under another name
LONGEST_STATE = 1 << 14


def _layers(config: dict[str, Any], quantization: dict[str, Any], raw: Raw) -> Iterator[Layer]:
    for name in raw.entries:
        stem, mark, kind = name.rpartition(f".{STATE}")
        if mark:
            if kind not in FORMATS:
                raise raw.error(name, f"is of the type {shown(kind)}, which is not read", f"known: {', '.join(FORMATS)}")
            yield _four_bit(stem, kind, raw)
        elif name.endswith(".SCB"):
            yield _eight_bit(name.removesuffix("SCB"), _threshold(quantization, raw.path), raw)


def _threshold(quantization: dict[str, Any], path: Path) -> float:
    threshold = quantization.get("llm_int8_threshold", 6.0)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold < math.inf:
        raise CheckpointError(f"llm_int8_threshold is {shown(threshold)}, not a number from 0 on", where=f"{path / 'config.json'}: quantization_config")
    return float(threshold)


def _instead(threshold: float) -> str:
    """How to compute as bitsandbytes does, where that threshold has a name."""
    try:
        inputs = TensorSpec("int8", "token", dynamic=True, threshold=threshold)
    except SchemeError:
        return ""
    return f" (--quantization W8A{write_tensor(inputs, 'activation')} does as bitsandbytes does)"


def _eight_bit(prefix: str, threshold: float, raw: Raw) -> Layer:
    weight, largest, form = f"{prefix}weight", f"{prefix}SCB", f"{prefix}weight_format"
    rows, columns = raw.entry(weight, ("I8",), (None, None)).shape
    raw.entry(largest, ("F32", "F16", "BF16"), (rows,))
    if form in raw and (raw.entry(form, ("U8",)).nbytes != 1 or raw.array(form, ("U8",)).any()):
        raise raw.error(form, "says that the rows lie in tiles", "load the model with transformers and save it again, which writes plain rows")
    spec = TensorSpec("int8", "channel")

    def read(first: int, last: int) -> QTensor:
        scales = (raw.floats(largest, rows=slice(first, last)) / np.float32(127)).reshape(-1, 1)
        return QTensor(raw.array(weight, ("I8",))[first:last], scales, spec, (last - first, columns))

    return Layer(weight, (rows, columns), spec, "bitsandbytes int8", (weight, largest, *((form,) if form in raw else ())), read,
                 None if threshold else TensorSpec("int8", "token", dynamic=True))


def _four_bit(name: str, kind: str, raw: Raw) -> Layer:
    state, block, shape = _state(name, kind, raw)
    rows, columns = shape
    entry = raw.entry(name, STORAGE)
    if entry.nbytes != -(-rows * columns // 2):
        raise raw.error(name, f"has {entry.nbytes} bytes, {rows} x {columns} values of 4 bits need {-(-rows * columns // 2)}")
    blocks = -(-rows * columns // block)
    nested = f"{name}.nested_absmax" in raw
    parts = [name, f"{name}.{STATE}{kind}", f"{name}.absmax", f"{name}.quant_map"]
    _check_table(f"{name}.quant_map", kind, raw)
    if nested:
        parts += [f"{name}.nested_absmax", f"{name}.nested_quant_map"]
        scales_of = _nested(name, state, blocks, raw)
    else:
        raw.entry(f"{name}.absmax", ("F32", "F16", "BF16"), (blocks,))
        scales_of = lambda first, last: raw.floats(f"{name}.absmax", rows=slice(first, last))  # noqa: E731
    group = math.gcd(columns, block)
    spec = TensorSpec(kind, "group", group)

    def read(first: int, last: int) -> QTensor:
        begin, end = first * columns, last * columns
        packed = raw.array(name, STORAGE).reshape(-1).view(np.uint8)[begin // 2 : -(-end // 2)]
        codes = np.empty((packed.size, 2), np.uint8)
        codes[:, 0], codes[:, 1] = packed >> 4, packed & 15
        codes = codes.reshape(-1)[begin % 2 : begin % 2 + end - begin].reshape(last - first, columns)
        scales = np.asarray(scales_of(begin // block, -(-end // block)), np.float32)
        # Group g of the run lies in one block, since the group's length divides the block's.
        scales = scales[np.arange(begin, end, group) // block - begin // block].reshape(last - first, -1)
        return QTensor(codes, scales, spec, (last - first, columns))

    label = f"bitsandbytes {kind}, blocks of {block}" + (", double quantization" if nested else "")
    return Layer(name, shape, spec, label, tuple(parts), read)


def _state(name: str, kind: str, raw: Raw) -> tuple[dict[str, Any], int, tuple[int, int]]:
    """(what the JSON beside the weight says, its block size, the weight's shape), checked."""
    where = f"{name}.{STATE}{kind}"
    entry = raw.entry(where, ("U8",), (None,))
    if entry.nbytes > LONGEST_STATE:
        raise raw.error(where, f"is {entry.nbytes} bytes long, which no quant_state is")
    state = parse_object(raw.array(where, ("U8",)).tobytes(), f"{raw.homes[where].path}: tensor {shown(where)}")
    if state.get("quant_type") != kind:
        raise raw.error(where, f"says quant_type {shown(state.get('quant_type'))}")
    if (block := state.get("blocksize")) not in BLOCKS or type(block) is not int:
        raise raw.error(where, f"says blocksize {shown(block)}", f"known: {', '.join(map(str, BLOCKS))}")
    shape = state.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and 0 < size < 1 << 31 for size in shape)):
        raise raw.error(where, f"says shape {shown(shape)}, not that of a matrix")
    return state, block, (shape[0], shape[1])


def _check_table(name: str, kind: str, raw: Raw) -> None:
    """The values are those of the format, whatever the file says, as in bitsandbytes: so the file must say the same."""
    table = np.array(formats.get(kind).table, np.float32)
    if not np.allclose(raw.floats(name, (16,)), table, rtol=0, atol=1e-6):
        raise raw.error(name, f"does not hold the values of {kind}", "the weights are damaged or of an experimental type: quantize the model again")


def _nested(name: str, state: dict[str, Any], blocks: int, raw: Raw) -> Callable[[int, int], np.ndarray]:
    """Scales [first, last) of a weight with double quantization, in bitsandbytes' order of operations: float32 (table * scale) + offset."""
    where = f"{name}.{STATE}{state['quant_type']}"
    size, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(size) is not int or not 0 < size <= 1 << 20:
        raise raw.error(where, f"says nested_blocksize {shown(size)}")
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not abs(offset) < 3e38:
        raise raw.error(where, f"says nested_offset {shown(offset)}, which is no number")
    if state.get("nested_dtype", "float32") != "float32":
        raise raw.error(where, f"says nested_dtype {shown(state.get('nested_dtype'))}, only float32 is read")
    raw.entry(f"{name}.absmax", ("U8",), (blocks,))
    raw.entry(f"{name}.nested_absmax", ("F32",), (-(-blocks // size),))
    raw.entry(f"{name}.nested_quant_map", ("F32",), (256,))

    def scales(first: int, last: int) -> np.ndarray:
        codes = raw.array(f"{name}.absmax", ("U8",))[first:last]
        outer = raw.floats(f"{name}.nested_absmax")[np.arange(first, last) // size]
        with np.errstate(over="ignore", invalid="ignore"):  # damaged numbers: what is not finite is refused by the reader
            inner: np.ndarray = raw.floats(f"{name}.nested_quant_map")[codes] * outer + np.float32(offset)
        return inner

    return scales


class BitsandbytesCodec:
    def writer(self, options: WriterOptions) -> BitsandbytesWriter:
        return BitsandbytesWriter(options)

    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        quantization = quantization_config(path)
        notes = []
        if quantization.get("load_in_8bit") and (threshold := _threshold(quantization, path)):
            notes.append("bitsandbytes rounds inputs to int8 except those from llm_int8_threshold on; here all inputs stay in 16 bits, which loses less"
                         + _instead(threshold))
        return open_quantized(path, METHOD, _layers, notes=notes)


CODEC = BitsandbytesCodec()
