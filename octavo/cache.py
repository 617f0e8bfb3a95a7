"""KVPool: the paged, possibly quantized key-value cache; Step: the tensors of one forward."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

from .schemes import TensorSpec

PAGE = 32  # tokens per page; csrc/ops.h kPage


@dataclass
class Step:
    """One forward: several sequences, each with a run of new tokens (a prompt chunk or one decoded token). All int32, C order.

    Sequence s owns rows starts[s]:starts[s+1]; after the step it has lengths[s] tokens in the cache, the last of which are these
    rows; tables[s, i] is its i-th page. slots[r] = page * PAGE + offset is where row r's key and value go.
    """

    tokens: np.ndarray      # [rows]
    positions: np.ndarray   # [rows]
    slots: np.ndarray       # [rows]
    starts: np.ndarray      # [sequences + 1]
    lengths: np.ndarray     # [sequences]
    tables: np.ndarray      # [sequences, most pages]
    select: np.ndarray      # [logit_rows] rows whose logits are wanted


class KVPool:
    """Storage of `pages` pages for every layer, in the layout of csrc/ops.h:

    K [pages, kv_heads, head_dim, PAGE] (keys transposed inside a page, so that lanes are tokens), V [pages, kv_heads, PAGE, head_dim];
    fp32, bf16 (uint16 bits) or int8; int8 has float32 scales [pages, kv_heads, PAGE] for each of K and V: dynamic, one per token and head,
    symmetric, absmax / 127.
    """

    def __init__(self, pages: int, kv_heads: list[int], head_dims: list[int], spec: TensorSpec) -> None:
        self.pages, self.kv_heads, self.head_dims, self.spec = pages, kv_heads, head_dims, spec
        dtype = {"fp32": np.float32, "bf16": np.uint16, "int8": np.int8}[spec.format]
        self.k, self.v, self.k_scale, self.v_scale = [], [], [], []
        for heads, dim in zip(kv_heads, head_dims, strict=True):
            self.k.append(_zeros((pages, heads, dim, PAGE), dtype))
            self.v.append(_zeros((pages, heads, PAGE, dim), dtype))
            if spec.format == "int8":
                self.k_scale.append(_zeros((pages, heads, PAGE), np.float32))
                self.v_scale.append(_zeros((pages, heads, PAGE), np.float32))

    def copy_page(self, source: int, target: int) -> None:
        """Make page `target` equal to page `source` in every layer."""
        for group in (self.k, self.v, self.k_scale, self.v_scale):
            for layer in group:
                layer[target] = layer[source]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for group in (self.k, self.v, self.k_scale, self.v_scale) for a in group)

    @staticmethod
    def bytes_per_page(kv_heads: list[int], head_dims: list[int], spec: TensorSpec) -> int:
        size = {"fp32": 4, "bf16": 2, "int8": 1}[spec.format]
        return sum(2 * PAGE * h * (d * size + (4 if spec.format == "int8" else 0)) for h, d in zip(kv_heads, head_dims, strict=True))


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of zeros that takes memory page by page as it is written, and starts at the beginning of one.

    NumPy asks for huge pages: the first token of a conversation then costs 2 MB in each of a model's many arrays, zeroed while everybody waits.
    """
    count = math.prod(shape)
    if not count:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, count * np.dtype(dtype).itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, count).reshape(shape)
