"""RowsOps: the op contract over all calibration rows at once, in NumPy float32.

A value is a Node: a recipe for a chunk of rows (a few whole sequences), worked out when somebody asks. Inputs of linears and residual streams are kept
once they are known, everything else is computed on the way and forgotten; so a block costs one forward, and memory for a few times its rows. At a
`linear` the visitor gets the group before its outputs exist: what it returns is what the model goes on with, so later linears of the same
block see the rounding of earlier ones.

Chunks are worked on by a few threads, each with a BLAS of one thread, and sums over chunks are added in their order: any number of threads gives the
same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import KernelError
from .attention import attend
from .group import Group, Source
from .observers import Observer
from .statistics import Statistics, combine, means, of_rows
from .tokens import Projection, counts, placed

CHUNK = 2048           # rows worked on at a time, about: Gram matrices of fewer rows are slower
KEPT_BYTES = 1 << 29   # inputs of a linear that are wider than this in all are computed again rather than kept

Visitor = Callable[[Group], Sequence[np.ndarray] | None]
Watcher = Callable[["RowsOps", "Node", "Node", int, int], None]  # of keys and values of a layer, see RowsOps


@dataclass
class Matrix:
    """A weight [n, k] by name, float32."""

    name: str
    values: np.ndarray

    @property
    def n(self) -> int:
        return int(self.values.shape[0])

    @property
    def k(self) -> int:
        return int(self.values.shape[1])

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


@dataclass
class Vector:
    """A gain or a bias by name, float32."""

    name: str
    values: np.ndarray


class Node:
    """A value [rows, width] of all calibration rows. `made_by`: the weight whose output it is, or ""."""

    __slots__ = ("_compute", "_kept", "_missing", "made_by", "source", "width")

    def __init__(self, width: int, compute: Callable[[int], np.ndarray], source: Source | None = None, made_by: str = "") -> None:
        self.width, self.source, self.made_by = width, source, made_by
        self._compute: Callable[[int], np.ndarray] | None = compute
        self._kept: list[np.ndarray | None] | None = None
        self._missing = 0

    def keep(self, chunks: int) -> None:
        """Remember chunks from now on; when all are there, what they were computed from may go."""
        if self._kept is None:
            self._kept, self._missing = [None] * chunks, chunks

    def chunk(self, index: int) -> np.ndarray:
        """float32 [rows of the chunk, width]; not to be written to."""
        if self._kept is not None and (known := self._kept[index]) is not None:
            return known
        compute = self._compute
        assert compute is not None
        value = compute(index)
        if self._kept is not None:
            if self._kept[index] is None:
                self._missing -= 1
            self._kept[index] = value
        return value

    @property
    def chunks(self) -> int:
        """How many chunks are kept; 0 where none are."""
        return len(self._kept or ())

    def settle(self) -> None:
        """After all chunks have been asked for: let go of what they were computed from."""
        if self._kept is not None and self._missing == 0:
            self._compute = None


@dataclass
class Call:
    """One call of `linear`: what it read, what was added to its outputs, and those."""

    x: Node
    residual: Node | None
    outs: tuple[Node, ...]


class RowsOps:
    """Implements op.Ops for tokens [sequences, length], all sequences at positions 0 to length - 1, without a cache.

    visit   called at every linear, see the module; None: nobody looks
    calls   where calls of `linear` are put down, or None
    references   the same calls in the unrounded model, which groups then know (see Group.missed); the visitor sees one after another
    watch   called at every attention with (these ops, keys and values as a cache would get them, layer, key-value heads); None: nobody looks
    reach   how far errors of linears, by their names, reach at each place of a sequence; None for those that attention does not follow (see reach.py)
    """

    name = "rows"

    def __init__(self, tokens: np.ndarray, threads: int) -> None:
        self.tokens, self.threads = tokens, threads
        self.visit: Visitor | None = None
        self.calls: list[Call] | None = None
        self.references: Iterator[Call] = iter(())
        self.watch: Watcher | None = None
        self.reach: Callable[[Sequence[str]], np.ndarray | None] | None = None
        sequences, self.length = tokens.shape
        self._step = step = max(1, CHUNK // self.length)
        self.parts = [slice(a, min(a + step, sequences)) for a in range(0, sequences, step)]
        self.pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        self.pool.shutdown()

    @property
    def rows(self) -> int:
        return int(self.tokens.size)

    def each(self, node: Node, work: Callable[[np.ndarray], Any]) -> Iterator[Any]:
        """work(chunk) of every chunk, in order; a few chunks are under way at a time."""
        yield from self._each_index(lambda index: work(node.chunk(index)))
        node.settle()

    def _each_index(self, work: Callable[[int], Any]) -> Iterator[Any]:
        waiting = []
        for index in range(len(self.parts)):
            waiting.append(self.pool.submit(work, index))
            if len(waiting) > self.threads:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()

    def compute(self, node: Node) -> None:
        """All chunks of a node, kept."""
        node.keep(len(self.parts))
        for _ in self.each(node, lambda chunk: None):
            pass

    def sequence(self, node: Node, index: int) -> np.ndarray:
        """The rows of one sequence, float32 [length, width]; not to be written to."""
        first = index % self._step * self.length
        return node.chunk(index // self._step)[first : first + self.length]

    def statistics(self, x: Node, counts: Sequence[np.ndarray] | None, *, gram: bool = True, moments: bool = True) -> Statistics:
        """See Group.statistics."""
        self._keep(x)
        total: Statistics | None = None
        for part in self._each_index(lambda index: of_rows(x.chunk(index), gram, moments, None if counts is None else counts[index])):
            total = combine(total, part)
        x.settle()
        assert total is not None
        return means(total)

    def counts(self, x: Node, names: Sequence[str] | None, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray | None],
               residual: Node | None) -> list[np.ndarray]:
        """See Group.counts; names: of the weights, where how far errors reach counts."""
        self._keep(x)
        single = residual if len(weights) == 1 else None
        projection = Projection(weights, biases)
        sizes = list(self._each_index(lambda index: projection.sizes(x.chunk(index), None if single is None else single.chunk(index))))
        x.settle()
        reached = None if self.reach is None or names is None else self.reach(names)
        return counts(sizes) if reached is None else placed(counts(sizes), reached)

    def _keep(self, x: Node) -> None:
        """Inputs of a linear, which are wanted again: by whatever else looks at them, and by the outputs."""
        if self.rows * x.width * 4 <= KEPT_BYTES:
            x.keep(len(self.parts))

    def mean(self, x: Node, work: Callable[[np.ndarray], np.ndarray] | None) -> np.ndarray:
        """See Group.mean."""
        total = np.zeros(x.width)
        for part in self.each(x, lambda chunk: (chunk if work is None else work(chunk)).sum(axis=0, dtype=np.float64)):
            total += part
        return total / self.rows

    def observed(self, x: Node, method: str, heads: int = 1) -> list[Observer]:
        """For each of `heads` equal parts of the columns an observer of that method that has counted all of it."""
        self._keep(x)
        observers = [Observer(method) for _ in range(heads)]
        for chunk in self.each(x, lambda chunk: chunk):
            for observer, part in zip(observers, np.split(chunk, heads, axis=1), strict=True):
                observer.update(part)
        return observers

    def missed(self, x: Node, weights: Sequence[np.ndarray], bias: np.ndarray | None, residual: Node | None, reference: Call,
               counts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See Group.missed."""
        whole = residual is not None and len(weights) == 1
        self._keep(x)

        def part(index: int) -> np.ndarray:
            rows = x.chunk(index)
            if not whole:
                lacking = reference.x.chunk(index) - rows
                lacking *= counts[index][:, None]
                found: np.ndarray = lacking.T @ rows
                return found
            assert residual is not None
            lacking = rows @ weights[0].T
            if bias is not None:
                lacking += bias
            lacking += residual.chunk(index)
            np.subtract(reference.outs[0].chunk(index), lacking, out=lacking)
            lacking *= counts[index][:, None]
            found = lacking.T @ rows
            return found

        total: np.ndarray | None = None
        for found in self._each_index(part):
            total = found if total is None else np.add(total, found, out=total)
        assert total is not None
        total /= np.float32(self.rows)
        return [total] if whole else [weight @ total for weight in weights]

    def sampled(self, x: Node, most: int) -> np.ndarray:
        """See Group.inputs."""
        self._keep(x)
        return np.concatenate(list(self._each_index(lambda index: x.chunk(index)[self.sample_of(index, most)])))

    def sample_of(self, index: int, most: int) -> slice:
        """Which rows of a chunk are among `most` of all, spread evenly."""
        step = max(1, -(-self.rows // most))
        return slice(-(self.parts[index].start * self.length) % step, None, step)

    # The op contract -------------------------------------------------------------------------------------------------------------

    def supports(self, problem: object) -> str | None:
        return None

    def prepare(self, tensor: object, activation: object, input_scale: float = 0.0) -> Any:
        raise KernelError("calibration takes its weights as arrays", where="rows")

    def constant(self, array: Any) -> Vector:
        return Vector("", np.asarray(array, np.float32))

    def embed(self, weight: Any, factor: float = 1.0) -> Node:
        tokens, parts = self.tokens, self.parts
        return Node(weight.k, lambda c: weight.rows(tokens[parts[c]].reshape(-1)) * np.float32(factor))

    def linear(self, x: Node, weights: Sequence[Matrix], biases: Sequence[Vector | None] | None = None, residual: Node | None = None) -> tuple[Node, ...]:
        values = [weight.values for weight in weights]
        given = [None] * len(values) if biases is None else list(biases)
        if self.visit is not None:
            changed = self.visit(Group(self, x, weights, given, x.source, residual, next(self.references, None)))
            values = values if changed is None else [np.ascontiguousarray(v, np.float32) for v in changed]
        outs = []
        for value, bias, weight in zip(values, given, weights, strict=True):
            outs.append(self._product(x, value, None if bias is None else bias.values, residual, weight.name))
        if self.calls is not None:
            self.calls.append(Call(x, residual, tuple(outs)))
        return tuple(outs)

    def _product(self, x: Node, value: np.ndarray, bias: np.ndarray | None, residual: Node | None, name: str) -> Node:
        def compute(c: int) -> np.ndarray:
            y: np.ndarray = x.chunk(c) @ value.T
            if bias is not None:
                y += bias
            if residual is not None:
                y += residual.chunk(c)
            return y

        node = Node(len(value), compute, made_by="" if residual is not None else name)
        if residual is not None:
            node.keep(len(self.parts))
        return node

    def rms_norm(self, x: Node, gain: Vector, eps: float, offset: float = 0.0, groups: int = 1) -> Node:
        factor = gain.values + np.float32(offset)

        def compute(c: int) -> np.ndarray:
            rows = x.chunk(c)
            parts = rows.reshape(len(rows), groups, -1)
            size = np.einsum("rgk,rgk->rg", parts, parts)[..., None] / np.float32(parts.shape[-1])
            y = parts * (1 / np.sqrt(size + np.float32(eps)))
            y *= factor
            return y.reshape(rows.shape)

        return Node(x.width, compute, Source("norm", gain.name, offset) if groups == 1 else None)

    def rope(self, x: Node, table: Vector, heads: int, head_dim: int, rotary: int) -> Node:
        half = rotary // 2
        cos, sin = table.values[: self.length, None, :half], table.values[: self.length, None, half:rotary]
        return Node(x.width, lambda c: turned(x.chunk(c), cos, sin, self.length, heads, head_dim))

    def attention(self, q: Node, k: Node, v: Node, layer: int, *, heads: int, kv_heads: int, head_dim: int, scale: float, window: int = 0,
                  softcap: float = 0.0) -> Node:
        window = window if window < self.length else 0
        if self.watch is not None:
            self.watch(self, k, v, layer, kv_heads)

        def compute(c: int) -> np.ndarray:
            shape = (-1, self.length, kv_heads, heads // kv_heads, head_dim)
            queries, keys, values = q.chunk(c).reshape(shape) * np.float32(scale), k.chunk(c), v.chunk(c)
            keys, values = (a.reshape(-1, self.length, kv_heads, head_dim) for a in (keys, values))
            out = np.empty((len(queries) * self.length, heads * head_dim), np.float32)
            result = out.reshape(queries.shape)
            for s in range(len(queries)):
                for h in range(kv_heads):
                    for _ in attend(queries[s, :, h], keys[s, :, h], values[s, :, h], window, softcap, result[s, :, h]):
                        pass
            return out

        source = Source("attention", v.made_by, heads=heads, kv_heads=kv_heads, head_dim=head_dim) if v.made_by else None
        return Node(heads * head_dim, compute, source)

    def gate(self, kind: Literal["silu", "gelu_tanh", "gelu"], gate: Node, up: Node) -> Node:
        activation = ACTIVATIONS[kind]
        source = Source("gate", up.made_by) if up.made_by else None
        def compute(c: int) -> np.ndarray:
            y = activation(gate.chunk(c))
            y *= up.chunk(c)
            return y

        return Node(up.width, compute, source)

    def add(self, x: Node, y: Node) -> Node:
        node = Node(x.width, lambda c: x.chunk(c) + y.chunk(c))
        node.keep(len(self.parts))
        return node

    def softcap(self, x: Node, cap: float) -> Node:
        return Node(x.width, lambda c: np.float32(cap) * np.tanh(x.chunk(c) / np.float32(cap)))

    def select(self, x: Node) -> Node:
        return x


def turned(rows: np.ndarray, cos: np.ndarray, sin: np.ndarray, length: int, heads: int, head_dim: int) -> np.ndarray:
    """Rotary embedding of rows [sequences * length, heads * head_dim] by cos and sin [length, 1, half]."""
    half = cos.shape[-1]
    y = rows.reshape(-1, length, heads, head_dim).copy()
    first, second = y[..., :half].copy(), y[..., half : 2 * half].copy()
    y[..., :half] = first * cos - second * sin
    y[..., half : 2 * half] = second * cos + first * sin
    return y.reshape(rows.shape)


def _silu(x: np.ndarray) -> np.ndarray:
    y = np.maximum(x, np.float32(-80))  # exp(80) is still finite in float32
    np.negative(y, out=y)
    np.exp(y, out=y)
    y += 1
    return np.divide(x, y, out=y)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    y = x * x  # a power of 3 would be a call for each number
    y *= np.float32(0.044715)
    y += 1
    y *= x
    y *= np.float32(math.sqrt(2 / math.pi))
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= np.float32(0.5)
    return y


def _gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    activated: np.ndarray = np.float32(0.5) * x * (1 + erf(x / np.float32(math.sqrt(2))))
    return activated


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"silu": _silu, "gelu_tanh": _gelu_tanh, "gelu": _gelu}
