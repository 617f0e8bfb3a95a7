"""Writes weights in AutoAWQ's gemm layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._int_layers import AWQ_ORDER
from ._int_words import WORD, pack, words
from ._int_writing import common_size, size_of, sized, unsigned, why_not
from .base import InexactError, Part, Writer, WriterOptions

FORMATS = ("int4",)


class AwqWriter(Writer):
    """Symmetric weights get zero points of 8. All weights have one group size: the one that most of them come in."""

    def __init__(self, options: WriterOptions) -> None:
        if options.variant not in ("", "gemm"):
            raise UsageError(f"unknown kind {options.variant!r} of awq", remedy="known: gemm")
        self.size = common_size(options.specs, FORMATS, options.config)

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        reason = why_not(spec, shape, FORMATS, "awq")
        if reason is None and (size_of(spec) if size_of(spec) > 0 else shape[1]) != (self.size if self.size > 0 else shape[1]):
            return f"awq has one group size for all weights, here {'one group a row' if self.size == -1 else f'groups of {self.size}'}"
        return reason

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        return sized("int4", self.size, shape, spec.symmetric)

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Part]:
        rows, width = shape
        groups = 1 if size_of(spec) == -1 else width // spec.size
        found = {"qweight": Part("I32", (width, words(rows, 4))), "qzeros": Part("I32", (groups, words(rows, 4))), "scales": Part("F16", (groups, rows))}
        return {name.removesuffix("weight") + part: value for part, value in found.items()}

    def fill(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        if tensor.order is not None:
            raise InexactError("its inputs are permuted (act-order), and awq has no place for their order", remedy="requantize it")
        stem, last = name.removesuffix("weight"), first + tensor.shape[0]
        codes, zeros, scales = unsigned(tensor)
        columns = slice(first * 4 // WORD, last * 4 // WORD)
        out[f"{stem}qweight"][:, columns] = _packed(codes)
        out[f"{stem}qzeros"][:, columns] = _packed(zeros)
        out[f"{stem}scales"][:, first:last] = scales.T

    def config(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        left = sorted(name.removesuffix(".weight") for name in kept if not name.endswith("embed_tokens.weight"))
        return {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": self.size, "zero_point": True, "version": "gemm",
                                        "modules_to_not_convert": left or None}}


def _packed(values: np.ndarray) -> np.ndarray:
    """[rows, n] of outputs first as [n, rows / 8] words, each eight outputs interleaved."""
    eights = np.ascontiguousarray(values.T).reshape(values.shape[1], -1, 8)
    return pack(eights[..., list(AWQ_ORDER)].reshape(values.shape[1], -1), 4)
