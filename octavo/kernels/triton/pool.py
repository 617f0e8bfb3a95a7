"""GpuPool: the paged key-value cache in the GPU's memory. What cache.KVPool holds, laid out for tiles: token by token, head_dim together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...cache import PAGE, Tuning, arranged, lead
from ...errors import CapacityError
from ...schemes import CacheSpec, TensorSpec, cache_pairs
from .. import _cache_codes
from ..op import Problem, cache_refusal
from .store4 import nbytes, unpacked
from .turn import Turns, balanced, ordered, rotating

# Ampere reads no FP8: codes are bytes, see _rounding
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8, "fp8e4m3": torch.uint8, "int4": torch.uint8}


def refusal(problem: Problem) -> str | None:
    """Why keys or values are not stored like this here, or None."""
    return cache_refusal(problem)


@dataclass(frozen=True)
class GpuLayer:
    """The storage of one layer. codes [pages, heads, PAGE, dim], of int4 uint8 in halves (store4.py); scales float32 [pages, heads, PAGE] where each token
    and head has one (of int4 int32 words), else None and one number for all (1 where the format has none). turns: of keys and queries, where keys are
    balanced or have 4 bits; value_turn [1, dim, dim]: of values of 4 bits, and of what attention makes of them.
    """

    keys: TensorSpec
    values: TensorSpec
    heads: int
    dim: int
    key_codes: torch.Tensor
    value_codes: torch.Tensor
    key_scales: torch.Tensor | None
    value_scales: torch.Tensor | None
    key_scale: float = 1.0
    value_scale: float = 1.0
    turns: Turns | None = None
    value_turn: torch.Tensor | None = None

    @property
    def arrays(self) -> list[torch.Tensor]:
        """What is stored page by page."""
        return [a for a in (self.key_codes, self.value_codes, self.key_scales, self.value_scales) if a is not None]

    @property
    def k(self) -> np.ndarray:
        """A copy of the codes of keys in the order of cache.KVPool, [pages, heads, dim, PAGE]; bfloat16 as its bits, int4 packed as there."""
        found = _numpy(self.key_codes)
        if self.keys.format == "int4":
            found = _cache_codes.pack_keys(unpacked(found, self.dim, lead(self.dim)), lead(self.dim))
        return found.transpose(0, 1, 3, 2)

    @property
    def v(self) -> np.ndarray:
        """A copy of the codes of values, [pages, heads, PAGE, dim]; likewise."""
        found = _numpy(self.value_codes)
        return _cache_codes.pack_values(unpacked(found, self.dim, 0)) if self.values.format == "int4" else found

    @property
    def k_scale(self) -> np.ndarray | None:
        """Copies of the scales as cache.Layer has them, for those who read pages on the CPU."""
        return _scales(self.keys, self.key_scales, self.key_scale)

    @property
    def v_scale(self) -> np.ndarray | None:
        return _scales(self.values, self.value_scales, self.value_scale)


class GpuPool:
    """Storage of `pages` pages for every layer on `device`; `tuning` as for cache.KVPool."""

    def __init__(self, pages: int, kv_heads: list[int], head_dims: list[int], spec: TensorSpec | CacheSpec, tuning: Sequence[Tuning] | None = None,
                 device: torch.device | str = "cuda") -> None:
        self.pages, self.kv_heads, self.head_dims, self.spec = pages, kv_heads, head_dims, spec
        self.layers: list[GpuLayer] = []
        known = tuning or [Tuning()] * len(kv_heads)
        try:
            for heads, dim, (keys, values), one in zip(kv_heads, head_dims, cache_pairs(spec, len(kv_heads)), known, strict=True):
                codes, scales = [], []
                for half, leading in ((keys, lead(dim)), (values, 0)):
                    size = nbytes(dim, leading) if half.format == "int4" else dim
                    codes.append(torch.zeros((pages, heads, PAGE, size), dtype=DTYPES[half.format], device=device))
                    kind = torch.int32 if half.format == "int4" else torch.float32
                    scales.append(torch.zeros((pages, heads, PAGE), dtype=kind, device=device) if _counted(half) else None)
                fixed = [_fixed(keys, one.k_scale), _fixed(values, one.v_scale)]
                turns = None
                if keys.format == "int4":
                    turns = ordered(arranged(one.balance, heads, dim), device)
                elif one.balance is not None and _counted(keys):
                    turns = balanced(one.balance, device)
                value_turn = rotating(dim, device) if values.format == "int4" else None
                self.layers.append(GpuLayer(keys, values, heads, dim, codes[0], codes[1], scales[0], scales[1], fixed[0], fixed[1], turns, value_turn))
        except torch.cuda.OutOfMemoryError:
            self.layers = []
            raise CapacityError(f"the GPU has no room for a key-value cache of {pages} pages", where="memory",
                                remedy="use fewer pages (--kv-memory-mb) or an 8-bit cache") from None

    def copy_page(self, source: int, target: int) -> None:
        """Make page `target` equal to page `source` in every layer."""
        for layer in self.layers:
            for array in layer.arrays:
                array[target] = array[source]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for layer in self.layers for array in layer.arrays)


def _counted(spec: TensorSpec) -> bool:
    """Whether each token and head has a scale of its own."""
    return spec.quantized and spec.granularity != "tensor"


def _fixed(spec: TensorSpec, scale: float) -> float:
    """The one scale of a static format in float32, 1 where there is none."""
    return float(np.float32(scale)) if spec.quantized and not _counted(spec) and scale else 1.0


def _numpy(array: torch.Tensor) -> np.ndarray:
    found: np.ndarray = array.view(torch.int16).cpu().numpy().view(np.uint16) if array.dtype == torch.bfloat16 else array.cpu().numpy()
    return found


def _scales(spec: TensorSpec, scales: torch.Tensor | None, fixed: float) -> np.ndarray | None:
    if not spec.quantized:
        return None
    if scales is None:
        return np.full(PAGE, fixed, np.float32)
    return _numpy(scales).view(np.uint32) if spec.format == "int4" else _numpy(scales)
