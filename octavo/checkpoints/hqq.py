"""hqq: weights as HQQ serializes them into safetensors, by itself or under transformers.

What it is: per linear layer `W_q` (codes of several groups in one byte or word, first groups in the highest bits), `scale` and `zero` for each group,
and the layer's own settings as small tensors (`nbits`, `group_size`, `axis`, `shape`, `packing` ...), which are what is followed. Zero points are
fractions as a rule.
When to choose it: where a model is published in it; it needs no calibration data.
Limits: groups along the inputs (axis 1, transformers' default) that lie within a row. Groups along the outputs (axis 0) hold every n-th row of the
weight, for which no kernel has a form; they are refused, as are quantized scales and zero points, and pickled checkpoints (qmodel.pt). 1 bit and 1.58
bits are held in 2.
Source: hqq's core/quantize.py and core/bitpack.py; transformers' HqqConfig.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._folder import quant_method
from ._int_layers import FLOATS, SCALE_FORMATS, prefixes
from ._json import shown
from ._quantized import Layer, QuantizedCheckpoint, Raw, open_quantized

METHOD = "hqq"
PACKINGS = {"8bit_u8": (8, 1), "4bit_u8": (4, 2), "2bit_u8": (2, 4), "1bit_u8": (1, 8), "3bit_32": (3, 10)}  # name -> bits of a field, fields of a word
PACKING_OF = {8: "8bit_u8", 6: "8bit_u8", 5: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}
TERNARY = 1.58
FLAGS = ("quant_scale", "quant_zero", "channel_wise", "view_as_float")
# Said of each layer, and of no use here.
OTHER = ("unpack_view_dtype", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config", "optimize", "round_zero")
REMEDY = "quantize the model again with group_size 64 and axis 1, or take the unquantized model"


def _layers(config: dict[str, Any], quantization: dict[str, Any], raw: Raw) -> Iterator[Layer]:
    for prefix in prefixes(raw, "W_q", ("nbits", "packing")):
        yield _layer(prefix, raw)


def _layer(prefix: str, raw: Raw) -> Layer:
    weight, scale, zero = f"{prefix}W_q", f"{prefix}scale", f"{prefix}zero"
    bits, size, axis = _bits(raw, f"{prefix}nbits"), _whole(raw, f"{prefix}group_size"), _whole(raw, f"{prefix}axis")
    flags = {key: bool(raw.array(f"{prefix}{key}", ("U8", "BOOL"), ())) for key in FLAGS if f"{prefix}{key}" in raw}
    rows, width = (int(v) for v in raw.array(f"{prefix}shape", ("I64",), (2,)))
    if not (0 < rows < 1 << 31 and 0 < width < 1 << 31):
        raise raw.error(f"{prefix}shape", f"says {rows} x {width}")
    if axis != 1 or not flags.get("channel_wise", True):
        raise raw.error(f"{prefix}axis", f"says groups along {'the outputs' if axis == 0 else 'no axis that is read'}", REMEDY)
    if flags.get("quant_scale") or flags.get("quant_zero"):
        raise raw.error(scale, "is quantized itself, which is not read", REMEDY)
    if size <= 0 or width % size:
        raise raw.error(f"{prefix}group_size", f"says {size}, which does not divide {width} inputs", REMEDY)
    groups = rows * (width // size)
    field, fields = PACKINGS[_packing(raw, f"{prefix}packing", bits)]
    words = -(-groups // fields)
    if field != 3 and groups % fields:
        raise raw.error(weight, f"cannot hold {groups} groups, {fields} to a byte")
    packed = _words(raw, weight, words, size, "I32" if field == 3 else "U8", flags.get("view_as_float", False))
    for part in (scale, zero):
        raw.entry(part, FLOATS, (groups, 1))
    if raw.entries[zero].dtype != raw.entries[scale].dtype:
        raise raw.error(zero, f"is of type {raw.entries[zero].dtype}, the scales of {raw.entries[scale].dtype}")
    kept = f"int{max(2, int(bits))}"
    scale_format = SCALE_FORMATS[raw.entries[scale].dtype]
    spec = (TensorSpec(kept, "channel", symmetric=False, scale_format=scale_format) if size == width
            else TensorSpec(kept, "group", size, symmetric=False, scale_format=scale_format))
    per_row, mask = width // size, (1 << field) - 1

    def read(first: int, last: int) -> QTensor:
        begin, end = first * per_row, last * per_row
        stored = packed()
        codes = np.empty((end - begin, size), np.uint8)
        for i in range(fields):  # groups [i * words, (i + 1) * words) lie in field i, counted from the highest
            low, high = max(begin, i * words), min(end, (i + 1) * words)
            if low < high:
                codes[low - begin : high - begin] = (stored[low - i * words : high - i * words] >> (field * (fields - 1 - i))) & mask
        scales, zeros = (raw.floats(part)[begin:end].reshape(last - first, per_row) for part in (scale, zero))
        return QTensor(codes.reshape(last - first, width), scales, spec, (last - first, width), zeros=zeros)

    parts = [weight, scale, zero, *(f"{prefix}{key}" for key in ("nbits", "group_size", "axis", "shape", "packing", *FLAGS, *OTHER) if f"{prefix}{key}" in raw)]
    label = f"hqq {bits:g} bits, {'one group a row' if size == width else f'groups of {size}'}, zero points"
    return Layer(f"{prefix}weight", (rows, width), spec, label, tuple(parts), read)


def _whole(raw: Raw, name: str) -> int:
    return int(raw.array(name, ("I32", "I64"), ()))


def _bits(raw: Raw, name: str) -> float:
    value = float(raw.array(name, ("I32", "I64", "F32"), ()))
    if abs(value - TERNARY) < 1e-3:
        return TERNARY
    if value not in PACKING_OF:
        raise raw.error(name, f"says {value:g} bits", f"known: {', '.join(map(str, PACKING_OF))}")
    return value


def _packing(raw: Raw, name: str, bits: float) -> str:
    entry = raw.entry(name, ("U8",), (None,))
    said = raw.array(name, ("U8",)).tobytes().decode("ascii", "replace") if entry.nbytes <= 32 else "..."
    expected = "2bit_u8" if bits == TERNARY else PACKING_OF[int(bits)]
    if said != expected:
        raise raw.error(name, f"says {shown(said)}, {bits:g} bits are packed as {expected!r}")
    return said


def _words(raw: Raw, name: str, words: int, size: int, dtype: str, as_float: bool) -> Callable[[], np.ndarray]:
    """A function that gives the codes' words [words, size], checked now; floats are another view of the same bytes."""
    width = 4 if dtype == "I32" else 1
    if not as_float:
        raw.entry(name, (dtype,), (words, size))
        return lambda: raw.array(name, (dtype,))
    entry = raw.entry(name, FLOATS, (words, None))
    if entry.nbytes != words * size * width:
        raise raw.error(name, f"has {entry.nbytes} bytes, {words} x {size} words need {words * size * width}")
    return lambda: raw.array(name, FLOATS).view("<i4" if dtype == "I32" else np.uint8)


class HqqCodec:
    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        return open_quantized(path, METHOD, _layers)


CODEC = HqqCodec()
