"""Writes weights as GPTQ keeps them: v1 for symmetric weights, v2 for zero points, act-order where it is asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._int_words import WORD, pack, words
from ._int_writing import INTS, common_size, size_of, sized, unsigned, why_not
from .base import InexactError, Part, Writer, WriterOptions

VARIANTS = ("v1", "v2", "act-order")


class GptqWriter(Writer):
    """The variant is v1, v2, act-order, or a version and act-order with a + between; "" is v1 where all weights that come are symmetric, else v2.

    Without act-order, desc_act is false, and a weight whose inputs are permuted is refused: readers leave g_idx out then.
    """

    def __init__(self, options: WriterOptions) -> None:
        chosen = [part for part in options.variant.split("+") if part]
        if not set(chosen) <= set(VARIANTS) or {"v1", "v2"} <= set(chosen):
            raise UsageError(f"unknown kind {options.variant!r} of gptq", remedy=f"known: {', '.join(VARIANTS)}, such as v2+act-order")
        coming = [spec for spec in options.specs.values() if spec.format in INTS]
        self.minus = 0 if "v2" in chosen or ("v1" not in chosen and any(not spec.symmetric for spec in coming)) else 1
        self.act_order = "act-order" in chosen
        self.size = common_size(options.specs, INTS, options.config)

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        if not spec.symmetric and self.minus:
            return "gptq v1 stores zero points minus one and has no place for 0 (gptq:v2 has)"
        return why_not(spec, shape, INTS, "gptq")

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        # Small floats of 4 bits go to 4 bits, all else to the next width that there is.
        bits = next((b for b in (2, 3, 4) if spec.quantized and b >= spec.bits), 8 if spec.quantized else 4)
        return sized(f"int{bits}", size_of(spec) if spec.granularity == "group" else self.size, shape, spec.symmetric or bool(self.minus))

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Part]:
        rows, width = shape
        groups = 1 if size_of(spec) == -1 else width // spec.size
        found = {"qweight": Part("I32", (words(width, spec.bits), rows)), "qzeros": Part("I32", (groups, words(rows, spec.bits))),
                 "scales": Part("F16", (groups, rows)), "g_idx": Part("I32", (width,))}
        return {name.removesuffix("weight") + part: value for part, value in found.items()}

    def fill(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        bits, stem, (rows, width) = tensor.spec.bits, name.removesuffix("weight"), tensor.shape
        codes, zeros, scales = unsigned(tensor)
        index = np.arange(width, dtype=np.int32) // (width if size_of(tensor.spec) == -1 else tensor.spec.size)
        if tensor.order is not None:
            if not self.act_order:
                raise InexactError("its inputs are permuted (act-order)", remedy="write gptq:act-order, or requantize it")
            back = np.argsort(tensor.order)
            codes, index = codes[:, back], index[back]
        last = first + rows
        out[f"{stem}qweight"][:, first:last] = pack(codes, bits).T
        stored = (zeros - np.uint8(self.minus)) & np.uint8((1 << bits) - 1)
        out[f"{stem}qzeros"][:, first * bits // WORD : last * bits // WORD] = pack(np.ascontiguousarray(stored.T), bits)
        out[f"{stem}scales"][:, first:last] = scales.T
        out[f"{stem}g_idx"][...] = index

    def config(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        kinds = Counter((spec.bits, size_of(spec)) for spec in weights.values())
        bits, size = kinds.most_common(1)[0][0] if kinds else (4, self.size)
        dynamic: dict[str, dict[str, Any]] = {
            f"+:{_exactly(name)}": {"bits": spec.bits, "group_size": size_of(spec)}
            for name, spec in weights.items() if (spec.bits, size_of(spec)) != (bits, size)}
        # Embeddings and lm_head are left alone without being told.
        dynamic |= {f"-:{_exactly(name)}": {} for name in kept if not name.endswith(("embed_tokens.weight", "lm_head.weight"))}
        return {"quantization_config": {
            "quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": self.act_order, "sym": all(spec.symmetric for spec in weights.values()),
            "lm_head": any(name.endswith("lm_head.weight") for name in weights), "checkpoint_format": "gptq" if self.minus else "gptq_v2",
            "pack_dtype": "int32", "true_sequential": True, "damp_percent": 0.01, "meta": {"quantizer": ["octavo"]},
            **({"dynamic": dynamic} if dynamic else {})}}


def _exactly(name: str) -> str:
    """The expression that only this module's name matches."""
    return f"^{re.escape(name.removesuffix('.weight'))}$"
