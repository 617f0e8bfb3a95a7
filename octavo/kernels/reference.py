"""The reference backend: every op in NumPy float64, any number format. Slow and obvious; the truth that other backends are tested against.

What it rounds, and nothing else: weights to what their QTensor says; activations of a linear to the weight's activation spec; keys and
values to the format of the cache. Ops compute at once; `capture` keeps the description of the step and runs it anew each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..cache import PAGE, KVPool, Step, Tuning, lead
from ..errors import KernelError
from ..qtensor import QTensor, quantize, rotate
from ..schemes import CacheSpec, TensorSpec
from . import _cache_codes as codes
from .op import Ops, Problem, Value, cache_refusal, scale_refusal

if TYPE_CHECKING:
    from ..layouts import Packed


class ReferenceWeight:
    """A weight [n, k] as the numbers it stands for (float32, as QTensor.dequantize gives them), and what activations are rounded to.

    Column j of `values` meets input order[j], multiplied by that input's factor and rotated in blocks of `rotation` before it is rounded.
    """

    def __init__(self, values: np.ndarray, activation: TensorSpec, order: np.ndarray | None = None, factors: np.ndarray | None = None,
                 rotation: int = 0, input_scale: float = 0.0) -> None:
        self.values, self.activation, self.input_scale = values, activation, input_scale
        self.n, self.k = (int(size) for size in values.shape)
        self.nbytes = values.nbytes
        self.plain = order is None and not rotation  # then a fixed scale takes the factors in
        self.order = np.arange(self.k) if order is None else np.asarray(order)
        self.rotation = rotation
        self.factors = np.ones(self.k) if factors is None else np.asarray(factors, np.float64)

    def inputs(self, x: np.ndarray) -> np.ndarray:
        """x [rows, k] as the columns of `values` meet it."""
        if self.input_scale and self.plain:
            return round_activations(x, self.activation, self.input_scale, self.factors)
        ordered = (x * self.factors)[:, self.order]
        return round_activations(rotate(ordered, self.rotation) if self.rotation else ordered, self.activation, self.input_scale)

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """float64 [tokens, k]: these rows of the weight, input by input."""
        found = self.values[tokens].astype(np.float64)
        ordered: np.ndarray = (rotate(found, self.rotation) if self.rotation else found)[:, np.argsort(self.order)] * self.factors
        return ordered


@dataclass(frozen=True)
class ReferenceProgram:
    """A step that can be run again and again."""

    ops: ReferenceOps
    describe: Callable[[Ops], Value]

    def run(self, step: Step, pool: KVPool) -> np.ndarray:
        """float32 [logit_rows, vocab]; writes keys and values of the step's rows to the pool."""
        self.ops.enter(step, pool)
        try:
            return np.asarray(self.describe(self.ops), np.float32)
        finally:
            self.ops.leave()

    def best(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return largest(logits)


def largest(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place, value) of the largest of each row; a NaN counts as the largest of all."""
    place = logits.argmax(axis=1) if len(logits) else np.zeros(0, np.int64)
    return place, logits[np.arange(len(place)), place]


class ReferenceOps:
    """Implements `op.Ops`. Values are float64 arrays [rows, width]."""

    name = "reference"
    panels = balanced = True

    def __init__(self) -> None:
        self._step: Step | None = None
        self._pool: KVPool | None = None

    def capture(self, describe: Callable[[Ops], Value]) -> ReferenceProgram:
        return ReferenceProgram(self, describe)

    def enter(self, step: Step, pool: KVPool) -> None:
        """The ops that follow belong to this step."""
        self._step, self._pool = step, pool

    def leave(self) -> None:
        self._step = self._pool = None

    @property
    def step(self) -> Step:
        if self._step is None:
            raise KernelError("this op needs a step", where="reference", remedy="run it through capture(...).run(step, pool)")
        return self._step

    @property
    def pool(self) -> KVPool:
        if self._pool is None:
            raise KernelError("this op needs a cache", where="reference", remedy="run it through capture(...).run(step, pool)")
        return self._pool

    def supports(self, problem: Problem) -> str | None:
        """None for every weight and cache; activation scales that no backend can serve are refused."""
        spec = problem.activation
        if spec is not None and spec.quantized and not spec.dynamic:
            fits = (spec.format, spec.symmetric, spec.granularity) == ("int8", True, "tensor")
            return None if fits else "static scales of activations are one number for int8 codes without zero point"
        if spec is not None and spec.granularity == "tensor":
            return "one dynamic scale for all rows would let the texts of other users change a result"
        return cache_refusal(problem)

    def prepare(self, tensor: QTensor, activation: TensorSpec, input_scale: float = 0.0) -> ReferenceWeight:
        refusal = self.supports(Problem("linear", tensor.shape[0], tensor.shape[-1], weight=tensor.spec, activation=activation))
        refusal = refusal or scale_refusal(activation, input_scale)
        if refusal is not None:
            raise KernelError(refusal, where="reference")
        plain = replace(tensor, order=None, factors=None, rotation=0)
        return ReferenceWeight(np.asarray(plain.dequantize(), np.float32), activation, tensor.order, tensor.factors, tensor.rotation, input_scale)

    def adopt(self, packed: Packed, activation: TensorSpec, input_scale: float = 0.0) -> ReferenceWeight:
        """A weight that was packed for the native kernels, as the numbers it stands for."""
        from ..layouts import unpack

        return self.prepare(unpack(packed), activation, input_scale)

    def new_pool(self, pages: int, kv_heads: list[int], head_dims: list[int], spec: TensorSpec | CacheSpec, tuning: Sequence[Tuning] | None = None) -> KVPool:
        return KVPool(pages, kv_heads, head_dims, spec, tuning)

    def memory(self) -> tuple[int, int] | None:
        return None

    def constant(self, array: np.ndarray) -> np.ndarray:
        return np.asarray(array, np.float64)

    def embed(self, weight: Any, factor: float = 1.0) -> np.ndarray:
        rows: np.ndarray = weight.rows(self.step.tokens)
        return rows * factor

    def linear(self, x: np.ndarray, weights: Sequence[Any], biases: Sequence[np.ndarray | None] | None = None,
               residual: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        outputs = []
        for index, weight in enumerate(weights):
            y = weight.inputs(x) @ weight.values.astype(np.float64).T
            bias = biases[index] if biases is not None else None
            outputs.append(y if bias is None else y + bias)
        if residual is not None:
            if len(outputs) != 1:
                raise KernelError("a residual goes with exactly one weight", where="linear")
            outputs[0] = outputs[0] + residual
        return tuple(outputs)

    def rms_norm(self, x: np.ndarray, gain: np.ndarray, eps: float, offset: float = 0.0, groups: int = 1) -> np.ndarray:
        parts = x.reshape(len(x), groups, -1)
        normed = parts / np.sqrt(np.mean(parts**2, axis=-1, keepdims=True) + eps) * (offset + gain)
        return normed.reshape(x.shape)

    def rope(self, x: np.ndarray, table: np.ndarray, heads: int, head_dim: int, rotary: int) -> np.ndarray:
        half = rotary // 2
        row = table[self.step.positions]
        cos, sin = row[:, None, :half], row[:, None, half:]
        y = x.reshape(len(x), heads, head_dim).copy()
        first, second = y[..., :half].copy(), y[..., half:rotary].copy()
        y[..., :half] = first * cos - second * sin
        y[..., half:rotary] = second * cos + first * sin
        return y.reshape(x.shape)

    def attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, layer: int, *, heads: int, kv_heads: int, head_dim: int, scale: float,
                  window: int = 0, softcap: float = 0.0) -> np.ndarray:
        step = self.step
        write_cache(self.pool, layer, k.reshape(-1, kv_heads, head_dim), v.reshape(-1, kv_heads, head_dim), step.slots)
        q = q.reshape(len(q), kv_heads, heads // kv_heads, head_dim)
        y = np.zeros(q.shape)
        for s, length in enumerate(step.lengths):
            rows = slice(step.starts[s], step.starts[s + 1])
            keys, values = read_cache(self.pool, layer, step.tables[s], int(length))
            scores = np.einsum("rhgd,hjd->hgrj", q[rows], keys) * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            at = np.arange(length - (rows.stop - rows.start), length)[:, None]  # index of each query row in its sequence
            j = np.arange(length)[None, :]
            seen = (j <= at) & (j > at - window) if window else j <= at
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            y[rows] = np.einsum("hgrj,hjd->rhgd", weights, values)
        return y.reshape(len(y), heads * head_dim)

    def gate(self, kind: Literal["silu", "gelu_tanh", "gelu"], gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        if kind == "silu":
            act = gate / (1 + np.exp(-np.clip(gate, -700, None)))  # exp(700) is still finite
        elif kind == "gelu_tanh":
            act = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        elif kind == "gelu":
            act = 0.5 * gate * (1 + np.vectorize(math.erf, otypes=[np.float64])(gate / math.sqrt(2)))
        else:
            raise KernelError(f"unknown activation {kind!r}", where="gate", remedy="known: silu, gelu_tanh, gelu")
        return act * up

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return x + y

    def softcap(self, x: np.ndarray, cap: float) -> np.ndarray:
        return cap * np.tanh(x / cap)

    def select(self, x: np.ndarray) -> np.ndarray:
        return x[self.step.select]


def fixed_codes(x: np.ndarray, scale: float, zero_point: int = 0, factors: np.ndarray | None = None) -> np.ndarray:
    """int8 codes of x [rows, k], finite, with a scale known beforehand: round(x / scale) + zero_point half to even, within +-127; factors [k]: by which x is
    multiplied first. In float32: x meets one product of 1 / scale and its factor."""
    inverse = np.float32(1) / np.float32(scale) * (np.ones(x.shape[1], np.float32) if factors is None else factors.astype(np.float32))
    return np.clip(np.rint(x.astype(np.float32) * inverse) + np.float32(zero_point), -127, 127).astype(np.int8)


def round_activations(x: np.ndarray, spec: TensorSpec, input_scale: float = 0.0, factors: np.ndarray | None = None) -> np.ndarray:
    """x [rows, k] as a linear sees it: unchanged for an unquantized spec, else rounded row by row.

    INT8 per token: scale = max|x| / 127 in float32, code = x / scale rounded half to even; static: `input_scale` for all, codes end at -127 and 127;
    `factors` as for fixed_codes. A row with NaN or infinity becomes NaN. Finite values of at least spec.threshold are left out and stay as they are.
    """
    if not spec.quantized:
        return x
    if spec.threshold:
        size = np.abs(x.astype(np.float32))
        large = (size >= np.float32(spec.threshold)) & np.isfinite(size)
        return round_activations(np.where(large, 0, x), replace(spec, threshold=0.0)) + np.where(large, x, 0)
    finite = np.isfinite(x).all(axis=1)
    if not spec.dynamic:
        found = fixed_codes(np.where(finite[:, None], x, 0), input_scale, factors=factors)
        return np.where(finite[:, None], found.astype(np.float64) * np.float64(np.float32(input_scale)), np.nan)
    rounded = quantize(np.where(finite[:, None], x, 0).astype(np.float32), spec).dequantize().astype(np.float64)
    rounded[~finite] = np.nan
    return rounded


def write_cache(pool: KVPool, layer: int, k: np.ndarray, v: np.ndarray, slots: np.ndarray) -> None:
    """Store k, v [rows, kv_heads, head_dim] at `slots` (page * PAGE + offset), rounded as the pool's format says."""
    page, offset = np.divmod(slots, PAGE)
    at = pool.layers[layer]
    values = codes.rotate(v) if at.values.format == "int4" else v
    turned, near = codes.turn_keys(k, at)
    leading = lead(at.dim)
    for array, spec, store, scales, keys in ((turned, at.keys, at.k, at.k_scale, True), (values, at.values, at.v, at.v_scale, False)):
        static = scales is not None and scales.ndim == 1
        found, sizes = codes.encode(array.astype(np.float32), spec, scales if static else None, leading if keys else 0)
        if spec.format == "int4":
            found = codes.pack_keys(found, leading) if keys else codes.pack_values(found)
        if keys and near is not None and sizes is not None:
            sizes = sizes | np.where(near, np.uint32(0x80000000), np.uint32(0))
        if scales is not None and sizes is not None:
            scales[page, :, offset] = sizes
        if keys:
            store[page, :, :, offset] = found
        else:
            store[page, :, offset, :] = found


def read_cache(pool: KVPool, layer: int, table: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(keys, values), each float64 [kv_heads, length, head_dim], of the sequence whose pages `table` lists."""
    pages = table[: -(-length // PAGE)]
    at = pool.layers[layer]
    found: list[np.ndarray] = []
    near: np.ndarray | None = None
    for spec, store, scales in ((at.keys, at.k[pages].transpose(0, 1, 3, 2), at.k_scale), (at.values, at.v[pages], at.v_scale)):
        leading = 0 if found else lead(at.dim)
        if spec.format == "int4":
            store = codes.unpack_values(store, at.dim) if found else codes.unpack_keys(store, at.dim, leading)
        sizes = None if scales is None else scales[0] if scales.ndim == 1 else scales[pages]
        x = codes.decode(store, None if sizes is None else np.asarray(sizes), spec, leading)  # [pages, kv_heads, PAGE, head_dim]
        if spec.format == "int4" and not found and sizes is not None:
            near = ((sizes >> 31 == 1) & (not spec.symmetric)).transpose(1, 0, 2).reshape(at.heads, -1)[:, :length]
        found.append(x.transpose(1, 0, 2, 3).reshape(at.heads, -1, at.dim)[:, :length])
    keys, values = found
    return codes.turn_back(keys, at, near), codes.rotate(values) if at.values.format == "int4" else values


KERNELS = ReferenceOps
