"""Writes weights as bitsandbytes keeps them: NF4 and FP4, with double quantization where it is asked for, INT8 per row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import formats
from ..errors import UsageError
from ..qtensor import QTensor, quantize
from ..schemes import TensorSpec
from ._bitsandbytes_scales import RUN, double_quantized, dynamic_table
from .base import InexactError, Part, Writer, WriterOptions

METHOD = "bitsandbytes"
STATE = "quant_state.bitsandbytes__"
FORMATS = ("nf4", "fp4")
DOUBLE = "-double"
VARIANTS = (*FORMATS, "int8", *(f"{kind}{DOUBLE}" for kind in FORMATS))
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # block sizes that the library takes
USUAL = 64
USUAL_THRESHOLD = 6.0  # of inputs; 0: none stays in 16 bits
LONGEST_NUMBER = 24  # of a float in JSON
DTYPES = ("bfloat16", "float16", "float32")


class BitsandbytesWriter(Writer):
    """The variant is nf4, fp4 or int8; "" means the one that most weights come in, else nf4. A model has 4-bit weights or INT8 ones, not both.

    nf4-double, fp4-double: scales are rounded to a byte each, after the codes were found. So what comes quantized already does not fit, unless it was
    quantized for this target (`options.fresh`).
    """

    def __init__(self, options: WriterOptions) -> None:
        if options.variant not in ("", *VARIANTS):
            raise UsageError(f"unknown type {options.variant!r} of bitsandbytes", remedy=f"known: {', '.join(VARIANTS)}")
        self.options = options
        coming = [spec.format for spec in options.specs.values() if spec.format in VARIANTS and spec.symmetric]
        self.double = options.variant.endswith(DOUBLE)
        self.variant = options.variant.removesuffix(DOUBLE) or (max(VARIANTS, key=coming.count) if coming else "nf4")
        self._scales: dict[str, np.ndarray] = {}  # of the weights that are being filled, to be rounded when all are there
        dtype = str(options.config.get("dtype") or options.config.get("torch_dtype") or "")
        self.dtype = dtype if dtype in DTYPES else "bfloat16"
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the weights that `parts` was asked for

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        if self.variant == "int8":
            fits = spec.format == "int8" and spec.granularity == "channel" and spec.symmetric
            return None if fits else "bitsandbytes' int8 has one scale per row and no zero points"
        if spec.format not in FORMATS:
            return f"bitsandbytes' 4-bit weights are {' or '.join(FORMATS)}"
        if spec.granularity not in ("group", "channel") or _block(spec, shape) is None:
            return f"bitsandbytes' blocks have {BLOCKS[0]} to {BLOCKS[-1]} values, powers of two, and the scales of this weight do not follow such blocks"
        return "double quantization rounds its scales" if self.double and not self.options.fresh else None

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        if self.variant == "int8":
            return TensorSpec("int8", "channel")
        wanted = TensorSpec(self.variant, "group", USUAL)
        if self.double and spec.format in FORMATS and spec.granularity == "group" and _block(spec, shape) is not None:
            return spec
        # Numbers that do not divide into blocks are rounded by `fill`, in one run.
        return wanted if _block(wanted, shape) is not None else TensorSpec("fp32")

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Part]:
        if self.variant == "int8":
            stem = name.removesuffix("weight")
            return {name: Part("I8", shape), f"{stem}SCB": Part("F32", shape[:1]), f"{stem}weight_format": Part("U8", ())}
        kind, block, count = self._form(spec, shape)
        self._shapes[name] = shape
        blocks = -(-count // block)
        nested = {f"{name}.nested_absmax": Part("F32", (-(-blocks // RUN),)), f"{name}.nested_quant_map": Part("F32", (256,))} if self.double else {}
        return {name: Part("U8", (-(-count // 2), 1)), f"{name}.absmax": Part("U8" if self.double else "F32", (blocks,)),
                f"{name}.quant_map": Part("F32", (16,)), **nested, f"{name}.{STATE}{kind}": Part("U8", (len(self._state(spec, shape)),))}

    def fill(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        if tensor.order is not None or tensor.factors is not None:
            raise InexactError("its inputs are permuted or scaled")
        if self.variant == "int8":
            self._fill_rows(name, tensor, first, out)
            return
        shape = self._shapes[name]
        kind, block, _ = self._form(tensor.spec, shape)
        begin = first * shape[1]  # of a block too: pieces begin at multiples of 512 rows, or blocks divide rows
        if tensor.scales is None:
            codes, scales = _rounded(np.asarray(tensor.codes, np.float32).reshape(-1), kind, block)
        else:
            codes = np.asarray(tensor.codes).reshape(-1)
            scales = _of_blocks(np.asarray(tensor.scales), _group(tensor.spec, shape), block, shape[1])
        zero = formats.get(kind).encode(np.zeros(codes.size % 2, np.float32))  # what the library fills the last byte up with
        pairs = np.append(codes, zero).reshape(-1, 2)
        out[name].reshape(-1)[begin // 2 : begin // 2 + len(pairs)] = pairs[:, 0] << 4 | pairs[:, 1]
        held = out[f"{name}.absmax"] if not self.double else self._scales.setdefault(name, np.empty(out[f"{name}.absmax"].shape, np.float32))
        held[begin // block : begin // block + scales.size] = scales
        out[f"{name}.quant_map"][...] = np.array(formats.get(kind).table, np.float32)
        mean = 0.0
        if self.double and first + tensor.shape[0] == shape[0]:  # the last piece: pieces come in order
            out[f"{name}.absmax"][...], out[f"{name}.nested_absmax"][...], offset = double_quantized(self._scales.pop(name))
            mean = float(offset)
            out[f"{name}.nested_quant_map"][...] = dynamic_table()
        out[f"{name}.{STATE}{kind}"][...] = np.frombuffer(self._state(tensor.spec, shape, mean), np.uint8)

    def _fill_rows(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        assert tensor.scales is not None
        rows = slice(first, first + tensor.shape[0])
        out[name][rows] = tensor.codes
        out[name.removesuffix("weight") + "SCB"][rows] = largest_magnitudes(np.asarray(tensor.scales)[:, 0])

    def _form(self, spec: TensorSpec, shape: tuple[int, ...]) -> tuple[str, int, int]:
        """(format, block, number of values)."""
        block = _block(spec, shape) if spec.quantized else USUAL
        assert block is not None
        return (spec.format if spec.quantized else self.variant), block, shape[0] * shape[1]

    def _state(self, spec: TensorSpec, shape: tuple[int, ...], mean: float = 0.0) -> bytes:
        """As JSON. With a mean of scales it has one length whatever that is: blanks at the end mean nothing."""
        kind, block, _ = self._form(spec, shape)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": self.dtype, "shape": list(shape)}
        if not self.double:
            return json.dumps(state).encode()
        nested = {"nested_blocksize": RUN, "nested_dtype": "float32", "nested_offset": float(mean)}
        return json.dumps({**state, **nested}).ljust(len(json.dumps({**state, **nested, "nested_offset": 0})) + LONGEST_NUMBER).encode()

    def config(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        # A head that shares the embedding's weight is no tensor of its own, and is not quantized.
        skipped = list(dict.fromkeys([*(name.removesuffix(".weight") for name in kept), *([] if "lm_head.weight" in weights else ["lm_head"])]))
        small = self.variant != "int8"
        inputs = {None if (spec := self.options.activations.get(name)) is None or spec.format != "int8" else spec.threshold for name in weights}
        threshold = inputs.pop() if len(inputs) == 1 else None
        quantization: dict[str, Any] = {"quant_method": METHOD, "load_in_4bit": small, "load_in_8bit": not small, "llm_int8_skip_modules": skipped,
                                        "llm_int8_threshold": USUAL_THRESHOLD if threshold is None else threshold,
                                        "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False}
        if small:
            kinds = [spec.format for spec in weights.values() if spec.format in FORMATS] or [self.variant]
            quantization |= {"bnb_4bit_quant_type": max(FORMATS, key=kinds.count), "bnb_4bit_compute_dtype": self.dtype,
                             "bnb_4bit_use_double_quant": self.double, "bnb_4bit_quant_storage": "uint8"}
        return {"quantization_config": quantization}


def largest_magnitudes(scales: np.ndarray) -> np.ndarray:
    """The magnitude of each row that bitsandbytes divides by 127: of the float32 neighbours of 127 scales the one that gives the scale back, where
    one does (one scale in a hundred has none: then it is the scale's neighbour, one unit in the last place away)."""
    wanted = (scales.astype(np.float64) * 127).astype(np.float32)
    best = wanted
    for candidate in (np.nextafter(wanted, np.float32(-np.inf)), np.nextafter(wanted, np.float32(np.inf))):
        best = np.where((best / np.float32(127) != scales) & (candidate / np.float32(127) == scales), candidate, best)
    return best


def _rounded(values: np.ndarray, kind: str, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scales) of a run of numbers in blocks that know no rows."""
    padded = np.append(values, np.zeros(-values.size % block, np.float32)).reshape(-1, block)
    tensor = quantize(padded, TensorSpec(kind, "channel"))
    assert tensor.scales is not None
    return np.asarray(tensor.codes).reshape(-1)[: values.size], np.asarray(tensor.scales).reshape(-1)


def _of_blocks(scales: np.ndarray, group: int, block: int, width: int) -> np.ndarray:
    """The scale of each block of a run of whole rows. Raises InexactError where groups within a block differ."""
    if group >= block:
        return np.repeat(scales, group // block, axis=1)[:, : width // block].reshape(-1)
    flat = scales.reshape(-1)
    firsts: np.ndarray = flat[:: block // group]
    if not np.array_equal(np.repeat(firsts, block // group)[: flat.size], flat):
        raise InexactError(f"its scales do not follow blocks of {block}")
    return firsts


def _group(spec: TensorSpec, shape: tuple[int, ...]) -> int:
    return spec.size if spec.granularity == "group" else shape[1]


def _block(spec: TensorSpec, shape: tuple[int, ...]) -> int | None:
    """The largest block that lies in one group and one row. Where there is none, 64 if groups divide it: blocks that cross rows, as they are read from
    bitsandbytes itself, whose scales come repeated. None for all else."""
    group = _group(spec, shape)
    whole = max((block for block in BLOCKS if group % block == 0 and shape[1] % block == 0), default=None)
    return whole or (USUAL if spec.granularity == "group" and USUAL % group == 0 and shape[1] % group == 0 else None)
