"""KVPool: the paged, possibly quantized key-value cache; Step: the tensors of one forward."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .schemes import CacheSpec, TensorSpec, cache_pairs

PAGE = 32   # tokens per page; csrc/ops.h kPage
LEAD = 0.4  # the size of a leading component of an int4 key beside that of the others, so that it rarely decides their scale


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


@dataclass(frozen=True)
class Tuning:
    """What is known of a layer's keys and values before the first is stored.

    balance   float32 [5, kv_heads, head_dim] or None. Keys are stored as (key - balance[0]) * balance[1], rotated; queries meet them times balance[2] = 1 /
              balance[1], rotated alike. It brings the channels of keys to one size and takes away what all keys share, which no softmax sees.
              For int4 (see `arranged`): the size that each channel then has, and the mean key of a text's first token.
    k_scale, v_scale   the scale of static formats, from the checkpoint; 0: there is none
    """

    balance: np.ndarray | None = None
    k_scale: float = 0.0
    v_scale: float = 0.0


@dataclass(frozen=True)
class Layer:
    """The storage of one layer, in the layout of csrc/ops.h; scales are None where the format has none, [PAGE] times the same number where they are static.

    balance: float32 [3, kv_heads, head_dim] as in Tuning, or None; of int4 keys always, as `arranged` gives it.
    """

    keys: TensorSpec
    values: TensorSpec
    heads: int
    dim: int
    k: np.ndarray
    v: np.ndarray
    k_scale: np.ndarray | None
    v_scale: np.ndarray | None
    balance: np.ndarray | None

    @property
    def turned(self) -> bool:
        """Whether all channels of keys are stored balanced and rotated, as 8 bits are."""
        return self.balance is not None and self.keys.format != "int4"

    @property
    def arrays(self) -> list[np.ndarray]:
        """What is stored page by page."""
        return [a for a in (self.k, self.v, self.k_scale, self.v_scale) if a is not None and a.ndim > 1]


# Format -> type of the codes; int4 lies two codes to a byte
DTYPES: dict[str, Any] = {"fp32": np.float32, "bf16": np.uint16, "int8": np.int8, "fp8e4m3": np.uint8, "int4": np.uint8}


class KVPool:
    """Storage of `pages` pages for every layer, in the layout of csrc/ops.h:

    K [pages, kv_heads, head_dim, PAGE] (keys transposed inside a page, so that lanes are tokens), V [pages, kv_heads, PAGE, head_dim];
    fp32, bf16 (uint16 bits), or 8 bits (int8, FP8 E4M3) with float32 scales [pages, kv_heads, PAGE]: dynamic, one per token and head, symmetric,
    largest / 127 (448); or static, one for the layer. int4 lies two codes to a byte, along head_dim, and has a uint32 in place of each scale: bfloat16
    scale (upper half) and offset; of keys `lead(head_dim)` components have a byte each. What int4 stores is rotated first (kernels/_cache_codes.py); so are
    keys that a Tuning balances.

    spec     of all layers, or a CacheSpec that tells keys from values and layers apart
    tuning   of each layer; None: nothing is known
    """

    def __init__(self, pages: int, kv_heads: list[int], head_dims: list[int], spec: TensorSpec | CacheSpec, tuning: Sequence[Tuning] | None = None) -> None:
        self.pages, self.kv_heads, self.head_dims, self.spec = pages, kv_heads, head_dims, spec
        self.layers: list[Layer] = []
        known = tuning or [Tuning()] * len(kv_heads)
        for heads, dim, (keys, values), one in zip(kv_heads, head_dims, cache_pairs(spec, len(kv_heads)), known, strict=True):
            k = _zeros((pages, heads, _stored(keys, dim + (lead(dim) if keys.format == "int4" else 0)), PAGE), DTYPES[keys.format])
            balance = arranged(one.balance, heads, dim) if keys.format == "int4" else None if one.balance is None or not _counted(keys) else one.balance[:3]
            v = _zeros((pages, heads, PAGE, _stored(values, dim)), DTYPES[values.format])
            self.layers.append(Layer(keys, values, heads, dim, k, v, _scales(keys, pages, heads, one.k_scale), _scales(values, pages, heads, one.v_scale),
                                     balance))

    @property
    def k(self) -> list[np.ndarray]:
        return [layer.k for layer in self.layers]

    @property
    def v(self) -> list[np.ndarray]:
        return [layer.v for layer in self.layers]

    @property
    def k_scale(self) -> list[np.ndarray]:
        """Of the layers that have them page by page."""
        return [layer.k_scale for layer in self.layers if layer.k_scale is not None and layer.k_scale.ndim > 1]

    @property
    def v_scale(self) -> list[np.ndarray]:
        return [layer.v_scale for layer in self.layers if layer.v_scale is not None and layer.v_scale.ndim > 1]

    def copy_page(self, source: int, target: int) -> None:
        """Make page `target` equal to page `source` in every layer."""
        for layer in self.layers:
            for array in layer.arrays:
                array[target] = array[source]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for layer in self.layers for array in layer.arrays)

    @staticmethod
    def bytes_per_page(kv_heads: list[int], head_dims: list[int], spec: TensorSpec | CacheSpec) -> int:
        pairs = cache_pairs(spec, len(kv_heads))
        return sum(PAGE * h * (_stored(half, d + extra) * np.dtype(DTYPES[half.format]).itemsize + (4 if _counted(half) else 0))
                   for h, d, (keys, values) in zip(kv_heads, head_dims, pairs, strict=True)
                   for half, extra in ((keys, lead(d) if keys.format == "int4" else 0), (values, 0)))


def _counted(spec: TensorSpec) -> bool:
    """Whether each token and head has a scale of its own."""
    return spec.quantized and spec.granularity != "tensor"


def lead(dim: int) -> int:
    """How many components of an int4 key have 8 bits (csrc/ops.h key_lead)."""
    return dim // 8


def rotation(count: int) -> np.ndarray:
    """float64 [count, count], orthogonal; rows times this are rotated. Walsh-Hadamard blocks of powers of two (arXiv 2404.00456), from the largest down and
    once more the other way round, so that any number of channels meet. Of a power of two: one block, its own inverse."""
    blocks = [1 << i for i in range(count.bit_length() - 1, -1, -1) if count >> i & 1]
    return _blocks(blocks) @ _blocks(blocks[::-1]) if len(blocks) > 1 else _blocks(blocks)


def _blocks(sizes: Sequence[int]) -> np.ndarray:
    matrix = np.zeros((sum(sizes), sum(sizes)))
    start = 0
    for size in sizes:
        block = np.ones((1, 1))
        while len(block) < size:
            block = np.block([[block, block], [block, -block]]) / np.sqrt(2)
        matrix[start : start + size, start : start + size] = block
        start += size
    return matrix


def arranged(balance: np.ndarray | None, heads: int, dim: int) -> np.ndarray:
    """What int4 keys are told: float32 [mean, inverse, gain, jump, order][heads, dim] (csrc/ops.h) from a Tuning's balance.

    The channels in which keys vary most, as queries see it, come first: `lead(dim)` of them are stored in 8 bits, in the others' scale and therefore made
    smaller than they are, to LEAD. The rest is rotated. order: which channel each component is; inverse and gain are in that order. jump: the components of
    the first token's mean key, for tokens that all others attend to and whose keys are like no others (arXiv 2309.17453).
    """
    if balance is None:
        ones = np.ones((heads, dim), np.float32)
        balance = np.stack([0 * ones, ones, ones, ones, 0 * ones])
    mean, inverse, _, size, first = balance
    count = lead(dim)
    order = np.argsort(-size, axis=1, kind="stable")
    sizes = np.take_along_axis(size, order, axis=1).astype(np.float64)
    factor = np.ones((heads, dim))
    factor[:, :count] = LEAD * np.sqrt((sizes[:, count:] ** 2).mean(axis=1, keepdims=True)) / sizes[:, :count]
    inverse = np.take_along_axis(inverse, order, axis=1) * factor.astype(np.float32)
    jump = np.take_along_axis(first - mean, order, axis=1) * inverse.astype(np.float64)
    jump[:, count:] = jump[:, count:] @ rotation(dim - count)
    return np.ascontiguousarray(np.stack([mean, inverse, np.float32(1) / inverse, jump, order]).astype(np.float32))


def _stored(spec: TensorSpec, dim: int) -> int:
    """Elements of the array of codes for a head of `dim`."""
    return (dim + 1) // 2 if spec.format == "int4" else dim


def _scales(spec: TensorSpec, pages: int, heads: int, fixed: float) -> np.ndarray | None:
    if not spec.quantized:
        return None
    if not _counted(spec):
        return np.full(PAGE, fixed or 1.0, np.float32)
    return _zeros((pages, heads, PAGE), np.uint32 if spec.format == "int4" else np.float32)


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
