"""What a step must at least read and compute, from the ops that were recorded: the numbers that measured times are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..cache import PAGE, KVPool
from ..ceilings import Rates
from ..schemes import CacheSpec, TensorSpec, cache_of


@dataclass(frozen=True)
class Cost:
    """weights, cache, rows: bytes of packed weights (once a step), of the key-value cache (read and written), and of activations; ints, floats:
    multiplications and additions of int8 and of floats."""

    weights: float = 0.0
    cache: float = 0.0
    rows: float = 0.0
    ints: float = 0.0
    floats: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.weights + other.weights, self.cache + other.cache, self.rows + other.rows, self.ints + other.ints, self.floats + other.floats)

    @property
    def bytes(self) -> float:
        return self.weights + self.cache + self.rows

    @property
    def operations(self) -> float:
        return self.ints + self.floats

    def least_seconds(self, rates: Rates, working_set: float) -> float:
        """No machine with these rates is faster. working_set: bytes of weights and cache that a whole step reads, which say from which cache or
        memory they come; activations are small and stay near."""
        reading = (self.weights + self.cache) / rates.read_rate(working_set) + self.rows / rates.read_rate(0)
        return max(reading, self.ints / rates.ints + self.floats / rates.floats)


@dataclass(frozen=True)
class Shape:
    """The shape of a step: for each sequence its new tokens and its length after them; logit_rows: rows whose logits are wanted."""

    counts: Sequence[int]
    lengths: Sequence[int]
    logit_rows: int

    @property
    def rows(self) -> int:
        return sum(self.counts)


def op_costs(ops: Sequence[Mapping[str, Any]], shape: Shape, cache: TensorSpec | CacheSpec) -> list[Cost]:
    """The cost of each op of `NativeProgram.describe` in a step of this shape. One core's work twice is not counted: these are the least."""
    costs = []
    for op in ops:
        rows = shape.logit_rows if op["logit_rows"] else shape.rows
        cost = Cost(op["weight_bytes"] if rows else 0.0, 0.0, op["row_bytes"] * rows, op["int_ops"] * rows, op["float_ops"] * rows)
        costs.append(cost + _attention(op, shape, cache) if op["heads"] else cost)
    return costs


def step_least(costs: Sequence[Cost], rates: Rates) -> float:
    """Least seconds of a step of these ops: its weights and cache are read once and all its operations done; activations stay near."""
    total = sum(costs, Cost())
    return Cost(total.weights, total.cache, 0.0, total.ints, total.floats).least_seconds(rates, total.weights + total.cache)


def _attention(op: Mapping[str, Any], shape: Shape, cache: TensorSpec | CacheSpec) -> Cost:
    """A pair of a query and a key it sees costs 4 * head_dim operations per head: the score, and the value's part in the sum."""
    window, pairs, touched = op["window"], 0, 0
    for count, length in zip(shape.counts, shape.lengths, strict=True):
        first = length - count + 1  # tokens that the first of the new rows sees, itself included
        if window:
            pairs += sum(min(seen, window) for seen in range(first, length + 1))
            touched += min(length, window + count - 1)
        else:
            pairs += (first + length) * count // 2
            touched += length
    mine = cache_of([cache.of(op["layer"])]) if isinstance(cache, CacheSpec) else cache
    token = KVPool.bytes_per_page([op["kv_heads"]], [op["head_dim"]], mine) / PAGE
    work = 4.0 * op["heads"] * op["head_dim"] * pairs
    return Cost(cache=token * (touched + shape.rows), ints=work if op["int_pairs"] else 0.0, floats=0.0 if op["int_pairs"] else work)
