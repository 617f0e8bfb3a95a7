"""Weights of integers in words, as GPTQ and AWQ lay them out: what gptq.py, awq.py and auto_round.py share.

Both keep `qweight`, `qzeros` and `scales` with the inputs first ([in, out]); GPTQ packs qweight along the inputs, AWQ along the outputs. A weight whose
zero points are all the midpoint is symmetric and becomes a symmetric QTensor (code - midpoint), which kernels compute without zero points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._int_words import WORD, regrouped, repeated, unpack, words
from ._json import shown
from ._quantized import Layer, QuantizedCheckpoint, Raw, open_quantized

FLOATS = ("F16", "BF16", "F32")
SCALE_FORMATS = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}
WORDS = {"int8": ("I8", 8), "int16": ("I16", 16), "int32": ("I32", 32), "int64": ("I64", 64)}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)    # field i of a word holds column AWQ_ORDER[i] of its eight
AWQ_INVERSE = (0, 4, 1, 5, 2, 6, 3, 7)  # column i of eight lies in field AWQ_INVERSE[i]
RUN = 32                                # outputs that fill whole words of any width at any bits
LEAST_GROUP = 8                         # unequal groups are cut to a common length, if that is at least this


@dataclass(frozen=True)
class Setting:
    """How one weight is quantized, as the config says.

    group_size  -1: one group, the whole row
    zeros       "plain", "minus_one" (GPTQ v1, AutoRound's auto_gptq), or "minus_one_carried": one was taken from whole words, with borrows
    remedy      what to do about a weight that is symmetric only under the other convention of zero points
    """

    bits: int
    group_size: int
    sym: bool = True
    desc_act: bool = False
    zeros: str = "plain"
    words: str = "int32"
    remedy: str = ""


@dataclass
class Findings:
    """What contradicts the config but is read all the same, counted while layers are made; `notes` says it in sentences."""

    asymmetric: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    no_index: list[str] = field(default_factory=list)
    wrapped: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        told = ((self.asymmetric, "the config says symmetric, but zero points are not the midpoint: the stored ones are used"),
                (self.reordered, "the config says desc_act false, but g_idx puts inputs in another order: g_idx is followed"),
                (self.no_index, "g_idx is all zero though there are several groups: it is taken as missing, groups in order"),
                (self.wrapped, "zero points of 0, which GPTQ v1 stores as -1: they are read as their maker wrote them, other readers may not"))
        return [f"{len(names)} weights ({shown(names[0])}, ...): {text}" for names, text in told if names]


def open_integers(path: Path, codec: str, describe: Callable[[dict[str, Any], Raw, Findings], Iterable[Layer]]) -> QuantizedCheckpoint:
    """Opens a folder whose layers `describe(quantization_config, raw, findings)` gives; what was found on the way becomes its notes."""
    findings, notes = Findings(), list[str]()

    def layers(config: dict[str, Any], quantization: dict[str, Any], raw: Raw) -> Iterable[Layer]:
        yield from describe(quantization, raw, findings)
        notes.extend(findings.notes())

    return open_quantized(path, codec, layers, notes=notes)


def whole(config: dict[str, Any], keys: Iterable[str], default: int | None, allowed: str, test: Any, where: str) -> int:
    """The whole number under the first of `keys` that is there. Raises CheckpointError for anything that does not pass `test`."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if type(value) is not int or not test(value):
            raise CheckpointError(f"{key} is {shown(value)}, not {allowed}", where=where)
        return value
    if default is None:
        raise CheckpointError(f"has no {next(iter(keys))}", where=where, remedy="fetch the model again")
    return default


def group_size(config: dict[str, Any], keys: Iterable[str], default: int | None, where: str) -> int:
    """-1, or a length above 0."""
    return whole(config, keys, default, "-1 or a whole number above 0", lambda v: v == -1 or 0 < v <= 1 << 24, where)


def truth(config: dict[str, Any], key: str, default: bool, where: str) -> bool:
    """Raises CheckpointError for what is neither true nor false; null is the default."""
    value = config.get(key)
    if value is not None and type(value) is not bool:
        raise CheckpointError(f"{key} is {shown(value)}, not true or false", where=where)
    return default if value is None else value


def prefixes(raw: Raw, part: str, others: Iterable[str]) -> list[str]:
    """"model.layers.0.self_attn.q_proj." of each tensor named ....`part`. Raises CheckpointError for one of `others` without it."""
    found = [name.removesuffix(part) for name in raw.entries if name.endswith(f".{part}")]
    known = set(found)
    for name in raw.entries:
        prefix, dot, last = name.rpartition(".")
        if dot and last in others and prefix + "." not in known:
            raise raw.error(name, f"belongs to {shown(f'{prefix}.{part}')}, which is missing", "the checkpoint is incomplete: fetch it again")
    return found


def gptq_layer(raw: Raw, prefix: str, setting: Setting, method: str, findings: Findings) -> Layer:
    """A weight in GPTQ's layout: qweight [in * bits / word, out], qzeros [groups, out * bits / word], scales [groups, out], g_idx [in] (or none)."""
    bits, (dtype, word) = setting.bits, WORDS[setting.words]
    qweight, qzeros, scales, g_idx = (f"{prefix}{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
    packed, rows = raw.entry(qweight, (dtype,), (None, None)).shape
    width = raw.entry(g_idx, ("I32", "I64"), (None,)).shape[0] if g_idx in raw else packed * word // bits
    if not rows or not width:
        raise raw.error(qweight, "is empty")
    if packed not in {words(width, bits, word), words(-(-width // RUN) * RUN, bits, word)}:
        raise raw.error(qweight, f"has {packed} rows of words, {width} inputs of {bits} bits make {words(width, bits, word)}")
    size, groups = _groups(raw, scales, setting, width, rows)
    stored_zeros = raw.array(qzeros, (dtype,), (groups, words(rows, bits, word)))
    order, size, repeats = _order(raw, prefix, setting, width, size, groups, findings)
    symmetric = _is_symmetric(raw, qzeros, stored_zeros, setting, rows, findings)
    spec = _spec(raw, scales, bits, size, width, symmetric)
    middle = np.uint8(1 << (bits - 1))

    def read(first: int, last: int) -> QTensor:
        columns = raw.array(qweight, (dtype,))[:, first:last]
        codes = np.ascontiguousarray(unpack(np.ascontiguousarray(columns.T), bits, width))
        if order is not None:
            codes = codes[:, order]
        zeros = None
        if symmetric:
            codes = (codes - middle).view(np.int8)
        else:
            start = first // RUN * RUN
            some = stored_zeros[:, start * bits // word : words(last, bits, word)]
            zeros = _by_row(_zero_points(some, setting)[:, first - start : last - start].astype(np.float32), repeats)
        return QTensor(codes, _by_row(_floats(raw, scales, first, last), repeats), spec, (last - first, width), zeros=zeros, order=order)

    parts = (qweight, qzeros, scales, *((g_idx,) if g_idx in raw else ()))
    return Layer(f"{prefix}weight", (rows, width), spec, _stored(method, setting, size, width, symmetric, order is not None), parts, read)


def awq_layer(raw: Raw, prefix: str, setting: Setting, method: str, findings: Findings) -> Layer:
    """A weight in AWQ's gemm layout: qweight [in, out * bits / 32], qzeros [groups, out * bits / 32], scales [groups, out]."""
    qweight, qzeros, scales = (f"{prefix}{part}" for part in ("qweight", "qzeros", "scales"))
    width, packed = raw.entry(qweight, ("I32",), (None, None)).shape
    bits, rows = setting.bits, packed * WORD // setting.bits
    if not rows or not width:
        raise raw.error(qweight, "is empty")
    if packed * WORD % (bits * 8):
        raise raw.error(qweight, f"has {packed} columns of words, which are no eights of values of {bits} bits")
    size, groups = _groups(raw, scales, setting, width, rows)
    if width % size:
        raise raw.error(qweight, f"has {width} inputs, which are no multiple of the group size {size}")
    stored_zeros = raw.array(qzeros, ("I32",), (groups, packed))
    symmetric = _is_symmetric(raw, qzeros, stored_zeros, setting, rows, findings)
    spec = _spec(raw, scales, bits, size, width, symmetric)
    middle = np.uint8(1 << (bits - 1))

    def read(first: int, last: int) -> QTensor:
        start = first // RUN * RUN
        taken, inside = slice(start * bits // WORD, words(-(-last // 8) * 8, bits)), slice(first - start, last - start)
        codes = np.ascontiguousarray(_awq_columns(raw.array(qweight, ("I32",))[:, taken], bits)[:, inside].T)
        zeros = None
        if symmetric:
            codes = (codes - middle).view(np.int8)
        else:
            zeros = _by_row(_awq_columns(stored_zeros[:, taken], bits)[:, inside].astype(np.float32), None)
        return QTensor(codes, _by_row(_floats(raw, scales, first, last), None), spec, (last - first, width), zeros=zeros)

    return Layer(f"{prefix}weight", (rows, width), spec, _stored(method, setting, size, width, symmetric, False), (qweight, qzeros, scales), read)


def _groups(raw: Raw, scales: str, setting: Setting, width: int, rows: int) -> tuple[int, int]:
    """(group length, groups), checked against the scales."""
    size = width if setting.group_size == -1 else min(setting.group_size, width)
    groups = raw.entry(scales, FLOATS, (None, rows)).shape[0]
    if groups != -(-width // size):
        raise raw.error(scales, f"has {groups} groups, {width} inputs in groups of {size} make {-(-width // size)}")
    return size, groups


def _order(raw: Raw, prefix: str, setting: Setting, width: int, size: int, groups: int, findings: Findings) -> tuple[
        np.ndarray | None, int, np.ndarray | None]:
    """(order of the inputs or None, group length, group of each stored group or None where they are the file's), from g_idx."""
    name, in_order = f"{prefix}g_idx", np.arange(width) // size
    if name not in raw:
        if setting.desc_act and groups > 1:
            raise raw.error(name, "is missing, and the config says desc_act", "the checkpoint is incomplete: fetch it again")
        return None, size, None
    index = raw.array(name, ("I32", "I64"), (width,)).astype(np.int64)
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= groups:
        raise raw.error(name, f"names group {low if low < 0 else high}, there are {groups}")
    if np.array_equal(index, in_order):
        return None, size, None
    if not high:  # groups > 1 here: several tools leave the index at its initial value
        if setting.desc_act:
            raise raw.error(name, f"puts all inputs in group 0 of {groups}, and the config says desc_act")
        findings.no_index.append(prefix[:-1])
        return None, size, None
    if not setting.desc_act:
        findings.reordered.append(prefix[:-1])
    sorting = np.argsort(index, kind="stable").astype(np.int32)
    ordered = index[sorting]
    order = None if np.array_equal(sorting, np.arange(width)) else sorting  # None: groups in order, but of unequal lengths
    if np.array_equal(ordered, in_order):
        return order, size, None
    counts = np.bincount(index, minlength=groups)
    common = regrouped(np.unique(np.cumsum(counts)))
    if common < LEAST_GROUP:
        raise raw.error(name, f"makes groups of {counts.min()} to {counts.max()} inputs, which have no common length",
                        "unpack it with the library that made it, and take the unquantized model")
    return order, common, ordered[::common]


def _is_symmetric(raw: Raw, name: str, stored: np.ndarray, setting: Setting, rows: int, findings: Findings) -> bool:
    """Whether all zero points are the midpoint. Raises CheckpointError where they are that only in the other convention than the config's."""
    bits, word = setting.bits, WORDS[setting.words][1]
    middle, minus = 1 << (bits - 1), setting.zeros != "plain"
    one = _uniform(stored, bits, word, rows)
    if one == middle - minus:
        return True
    if setting.sym and one is not None and abs(one + minus - middle) == 1:
        raise raw.error(name, f"holds {one} everywhere, which stands for a zero point of {one + minus}, but the config says symmetric: {middle}",
                        setting.remedy)
    if setting.sym:
        findings.asymmetric.append(name.rpartition(".")[0])
    if minus and bool((unpack(stored, bits, rows) == (1 << bits) - 1).any()):
        findings.wrapped.append(name.rpartition(".")[0])
    return False


def _uniform(stored: np.ndarray, bits: int, word: int, rows: int) -> int | None:
    """The value that all fields have, or None."""
    first = int(unpack(stored[:1], bits, 1)[0, 0])
    full = rows * bits // word if word % bits == 0 else 0
    if full and not bool((stored[:, :full].view(f"u{word // 8}") == repeated(first, bits, word)).all()):
        return None
    return first if bool((unpack(stored[:, full:], bits, rows - full * word // bits) == first).all()) else None


def _zero_points(stored: np.ndarray, setting: Setting) -> np.ndarray:
    """uint8 [groups, outputs]."""
    bits, word = setting.bits, WORDS[setting.words][1]
    if setting.zeros == "minus_one_carried" and word % bits == 0:
        unsigned = f"u{word // 8}"
        return unpack(np.ascontiguousarray(stored).view(unsigned) + np.array(repeated(1, bits, word), unsigned), bits)
    values = unpack(stored, bits)
    return values if setting.zeros == "plain" else (values + np.uint8(1)) & np.uint8((1 << bits) - 1)


def _awq_columns(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [rows, outputs], outputs in their own order; those beyond the last eight are left out."""
    fields = unpack(packed, bits)
    eights = fields.shape[1] // 8
    return fields[:, : eights * 8].reshape(len(packed), eights, 8)[..., list(AWQ_INVERSE)].reshape(len(packed), eights * 8)


def _floats(raw: Raw, name: str, first: int, last: int) -> np.ndarray:
    """Columns [first, last) of the scales as float32."""
    some = raw.array(name, FLOATS)[:, first:last]
    return (some.astype(np.uint32) << 16).view(np.float32) if raw.entries[name].dtype == "BF16" else some.astype(np.float32)


def _by_row(values: np.ndarray, repeats: np.ndarray | None) -> np.ndarray:
    """[groups, rows] as [rows, groups]."""
    return np.ascontiguousarray((values if repeats is None else values[repeats]).T)


def _spec(raw: Raw, scales: str, bits: int, size: int, width: int, symmetric: bool) -> TensorSpec:
    scale_format = SCALE_FORMATS[raw.entries[scales].dtype]
    if size >= width:
        return TensorSpec(f"int{bits}", "channel", symmetric=symmetric, scale_format=scale_format)
    return TensorSpec(f"int{bits}", "group", size, symmetric=symmetric, scale_format=scale_format)


def _stored(method: str, setting: Setting, size: int, width: int, symmetric: bool, ordered: bool) -> str:
    groups = "one group a row" if size >= width else f"groups of {size}"
    return ", ".join([f"{method} {setting.bits} bits", groups, "symmetric" if symmetric else "zero points", *(["act-order"] if ordered else [])])
