"""Tensors: where a model's description takes its weights from, by name.

A description is run twice. First over `Declaring`, which has no weights: it notes each name with the shape asked for, so that loading can
check a checkpoint and foresee memory before it reads a byte. Then over the weights themselves. So nothing is declared twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ..errors import ModelError
from ..kernels.op import Ops, Value, Weight

Use = Literal["linear", "embed"]


@dataclass(frozen=True)
class Wanted:
    """A tensor of the checkpoint: a weight [out, in] for linears or look-ups (quantized as the plan says), or a vector (float32)."""

    name: str
    shape: tuple[int, ...]
    uses: frozenset[Use] = frozenset()   # empty: a vector


@dataclass(frozen=True)
class Table:
    """A float32 matrix that follows from the config alone (rotary angles). `make` computes it."""

    name: str
    shape: tuple[int, int]
    make: Callable[[], np.ndarray]


class Tensors(Protocol):
    """What a description reads from. The same name gives the same weight: a tied head asks for the embedding's."""

    @property
    def ops(self) -> Ops: ...

    def weight(self, name: str, n: int, k: int, use: Use = "linear") -> Weight: ...

    def vector(self, name: str, n: int) -> Value: ...

    def table(self, table: Table) -> Value: ...


@dataclass(frozen=True)
class Declared:
    wanted: dict[str, Wanted]
    tables: dict[str, Table]


def declare(describe: Callable[[Tensors], Value]) -> Declared:
    """The tensors and tables that a description uses, in its order. Raises ModelError where widths do not fit each other."""
    tensors = Declaring()
    describe(tensors)
    return Declared(tensors.wanted, tensors.tables)


class Declaring:
    """Tensors without weights: the value of everything is its width."""

    def __init__(self) -> None:
        self.ops: Ops = Widths()
        self.wanted: dict[str, Wanted] = {}
        self.tables: dict[str, Table] = {}

    def weight(self, name: str, n: int, k: int, use: Use = "linear") -> Weight:
        self._want(Wanted(name, (n, k), frozenset([use])))
        return Shape(n, k)

    def vector(self, name: str, n: int) -> Value:
        self._want(Wanted(name, (n,)))
        return n

    def table(self, table: Table) -> Value:
        self.tables[table.name] = table
        return table.shape[1]

    def _want(self, wanted: Wanted) -> None:
        known = self.wanted.get(wanted.name)
        if known is not None and known.shape != wanted.shape:
            raise ModelError(f"is used as {list(known.shape)} and as {list(wanted.shape)}", where=wanted.name)
        uses = wanted.uses | known.uses if known else wanted.uses
        self.wanted[wanted.name] = Wanted(wanted.name, wanted.shape, uses)


@dataclass(frozen=True)
class Shape:
    """A weight that is not there: only its shape."""

    n: int
    k: int
    nbytes: int = 0


class Widths:
    """Implements `op.Ops` on widths: checks that what is put together fits."""

    name = "widths"

    def supports(self, problem: object) -> str | None:
        return None

    def prepare(self, tensor: object, activation: object, input_scale: float = 0.0) -> Weight:
        raise ModelError("a declaration has no weights")

    def constant(self, array: np.ndarray) -> Value:
        return array.shape[-1]

    def embed(self, weight: Weight, factor: float = 1.0) -> Value:
        return weight.k

    def linear(self, x: Value, weights: Sequence[Weight], biases: Sequence[Value | None] | None = None,
               residual: Value | None = None) -> tuple[Value, ...]:
        for index, weight in enumerate(weights):
            same(x, weight.k, "the input of a linear")
            bias = biases[index] if biases is not None else None
            if bias is not None:
                same(bias, weight.n, "a bias")
        if residual is not None:
            same(residual, weights[0].n, "a residual")
        return tuple(weight.n for weight in weights)

    def rms_norm(self, x: Value, gain: Value, eps: float, offset: float = 0.0, groups: int = 1) -> Value:
        return same(x, gain * groups, "the gain of a norm")

    def rope(self, x: Value, table: Value, heads: int, head_dim: int, rotary: int) -> Value:
        same(table, rotary, "a table of angles")
        return same(x, heads * head_dim, "heads")

    def attention(self, q: Value, k: Value, v: Value, layer: int, *, heads: int, kv_heads: int, head_dim: int, scale: float,
                  window: int = 0, softcap: float = 0.0) -> Value:
        same(k, kv_heads * head_dim, "keys")
        same(v, kv_heads * head_dim, "values")
        return same(q, heads * head_dim, "queries")

    def gate(self, kind: str, gate: Value, up: Value) -> Value:
        return same(gate, up, "a gate")

    def add(self, x: Value, y: Value) -> Value:
        return same(x, y, "a sum")

    def softcap(self, x: Value, cap: float) -> Value:
        return x

    def select(self, x: Value) -> Value:
        return x


def same(width: int, expected: int, what: str) -> int:
    if width != expected:
        raise ModelError(f"{what} is {width} wide, expected {expected}", where="config.json")
    return width
