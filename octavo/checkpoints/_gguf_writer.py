"""GGUF written: types chosen, numbers packed as they are or rounded, names and order of rows as llama.cpp has them.

Floats are rounded by native code (csrc/blocks.h): the simple types byte for byte as ggml's reference, the K types with a search of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from .. import _native, formats
from ..errors import UsageError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._gguf_metadata import architecture_of, head_width, metadata_of, rope_factors
from ._gguf_mixes import ALIASES, VARIANTS, Model, type_of
from ._gguf_names import gguf_name, heads_interleaved, norm_plus_one, place_of_rows
from ._gguf_pack import BLOCK, pack, why_not
from ._gguf_types import QUANTIZED, STORAGE
from ._gguf_vocabulary import tokenizer_metadata
from ._gguf_write import lay_out
from ._mapped import not_finite
from .base import FileWriter, InexactError, Layout, Part, WriterOptions

PLAIN = {"F32": ("fp32", "<f4"), "F16": ("fp16", "<f2"), "BF16": ("bf16", "<u2")}
NUMBER = {storage.name: number for number, storage in STORAGE.items()}
FLOAT = TensorSpec("fp32")
# For "gguf" without a type: the first of these that holds the numbers as they are. K types before the simple ones of the same bits.
CLOSEST = ("TQ2_0", "Q2_K", "Q3_K", "MXFP4", "IQ4_NL", "Q4_K", "Q4_0", "Q4_1", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0")


class GgufWriter(FileWriter):
    """See FileWriter. Variants are the types and mixes of llama.cpp; "" keeps each tensor in the type that holds its numbers."""

    def __init__(self, options: WriterOptions) -> None:
        wished = options.variant.upper()
        self.variant = ALIASES.get(wished, wished)
        if self.variant and self.variant not in VARIANTS:
            raise UsageError(f"unknown GGUF type {options.variant!r}", where="--to", remedy=f"known: {', '.join(VARIANTS)}")
        self.options, self.architecture = options, architecture_of(options.config)
        config = options.config
        heads = int(config["num_attention_heads"])
        self._model = Model(int(config["num_hidden_layers"]), heads // int(config.get("num_key_value_heads") or heads), bool(config.get("tie_word_embeddings")))
        metadata_of(config)  # refuses what cannot be said before anything is written

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        kind = self._type(name, spec, shape)
        if kind == "F32":
            return None
        if kind in PLAIN:
            return None if spec.format == PLAIN[kind][0] else f"{kind} does not hold all numbers of {spec.format}"
        return f"{kind} holds codes with scales, not {spec.format}" if not spec.quantized else why_not(kind, spec, shape[-1])

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        return FLOAT if spec.quantized else spec  # unquantized numbers are rounded as they come

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Part]:
        kind = self._type(name, self.options.specs.get(name, spec), shape)
        held = None
        if kind not in PLAIN:
            block, size = BLOCK[kind]
            held = ("u1", (shape[0], shape[1] // block * size))
        return {self._name(name): Part(kind, shape, held)}

    def fill(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        stored = self._name(name)
        target, kind = out[stored], self._type(name, self.options.specs.get(name, tensor.spec), tensor.shape)
        if heads_interleaved(self.architecture, name) is None:
            self._put(name, tensor, kind, target[first : first + tensor.shape[0]])
        else:
            rows = np.empty((tensor.shape[0], *target.shape[1:]), target.dtype)
            self._put(name, tensor, kind, rows)
            places = place_of_rows(head_width(self.options.config), first, len(rows))
            here = places < len(target)  # a trial is made on the first rows alone
            target[places[here]] = rows[here]

    def _put(self, name: str, tensor: QTensor, kind: str, out: np.ndarray) -> None:
        """The rows of a tensor in a type; packed as they are where they are quantized."""
        if kind in PLAIN:
            out[...] = self._plain(name, tensor, kind)
        elif tensor.spec.quantized:
            out[...] = pack(kind, tensor)
        elif _native.encode_blocks(NUMBER[kind], np.ascontiguousarray(tensor.codes), out):
            raise InexactError(f"it holds numbers so large that scales of {kind} would be infinite")

    def config(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        return {}  # the metadata says it all

    def extras(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, tuple[Part, np.ndarray]]:
        factors = rope_factors(self.options.config)
        return {} if factors is None else {"rope_freqs.weight": (Part("F32", factors.shape), factors)}

    def layout(self, file_name: str, parts: Mapping[str, Part], tokenizer: Mapping[str, Any]) -> Layout:
        rows = parts["token_embd.weight"].shape[0] if "token_embd.weight" in parts else int(self.options.config["vocab_size"])
        metadata = {"general.architecture": self.architecture, "general.type": "model", "general.name": PurePath(file_name).stem,
                    "general.file_type": self._file_type(parts), "general.quantization_version": 2, **metadata_of(self.options.config)}
        metadata[f"{self.architecture}.vocab_size"] = rows
        stored = tokenizer.get("gguf")  # of another GGUF file
        return lay_out(file_name, metadata | (tokenizer_metadata(tokenizer, rows) if stored is None else stored), parts)

    def _file_type(self, parts: Mapping[str, Part]) -> int:
        if self.variant:
            return VARIANTS[self.variant][1]
        size: dict[str, int] = {}
        for part in parts.values():
            size[part.dtype] = size.get(part.dtype, 0) + math.prod(part.shape)
        most = max(size, key=lambda kind: size[kind], default="F32")
        return next(number for kind, number in VARIANTS.values() if kind == most)

    def _name(self, name: str) -> str:
        found = gguf_name(self.architecture, name)
        if found is None:
            raise UsageError(f"tensor {name!r} has no place in a GGUF file of architecture {self.architecture!r}", remedy="convert to a folder format")
        return found

    def _type(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str:
        stored = self._name(name)
        if len(shape) != 2 or not stored.endswith(".weight") or "norm" in stored:
            return "F32"
        if self.variant:
            return type_of(self.variant, stored, shape[1], self._model)
        if not spec.quantized:
            return next(kind for kind, (token, _) in PLAIN.items() if token == spec.format)
        return next((kind for kind in CLOSEST if _natural(kind, spec, shape[1])), "F32")

    def _plain(self, name: str, tensor: QTensor, kind: str) -> np.ndarray:
        token = PLAIN[kind][0]
        plus_one = norm_plus_one(self.architecture, name)
        if tensor.spec.format == token and not plus_one:
            return np.asarray(tensor.codes)
        values = tensor.dequantize()
        if plus_one:
            values = values + np.float32(1)
        codes: np.ndarray = formats.get(token).encode(values)
        if not_finite(codes, token):
            raise InexactError(f"it holds numbers beyond what {kind} reaches")
        return codes


def _natural(kind: str, spec: TensorSpec, width: int) -> bool:
    """Whether this type is what such numbers are at home in: as wide, with minimums only where there may be some."""
    number = formats.get(spec.format)
    if why_not(kind, spec, width) is not None:
        return False
    wanted = QUANTIZED[kind].spec
    if spec.scale_format != wanted.scale_format and kind.endswith("_K"):
        return False
    if kind in ("Q4_1", "Q5_1"):
        return not spec.symmetric and spec.size == 32 and number.bits == formats.get(wanted.format).bits
    if kind == "TQ2_0":
        return spec.size == 256
    return kind == "Q8_0" or (spec.symmetric or not wanted.symmetric)
