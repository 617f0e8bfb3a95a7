"""Blocks: a model in float32, one layer in memory at a time, run over all calibration rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ..checkpoints import Checkpoint
from ..errors import CheckpointError
from ..kernels.op import Value
from ..layers import Table
from ..layers.tensors import Use
from ..models import Decoder
from .extra import one_blas_thread
from .gradients import TapeOps, Var
from .group import Group
from .reach import SEQUENCES, reach
from .rows import Call, Matrix, Node, RowsOps, Vector, Visitor, Watcher

T = TypeVar("T")
R = TypeVar("R")
Edit = Callable[[np.ndarray], np.ndarray]

PIECE = 512  # rows of a table of words read at a time: whole blocks of scales


class Weights:
    """Tensors of a checkpoint as float32, by the model's names.

    found   name here -> name in the checkpoint
    edits   what transforms made of tensors outside the layers, see `edit`; `config` is what that changes in config.json
    """

    def __init__(self, checkpoint: Checkpoint, found: Mapping[str, str]) -> None:
        self.checkpoint, self.found = checkpoint, found
        self.edits: dict[str, tuple[str, Edit]] = {}
        self.config: dict[str, Any] = {}

    def edit(self, name: str, change: Edit, source: str | None = None) -> None:
        """From now on `name`, a tensor outside the layers, is change(values of `source`), by default its own. Of a matrix, `change` works row by row. `name`
        may be one that the checkpoint lacks. What this does to the model's config goes into `config`."""
        self.edits[name] = source or name, change

    def get(self, name: str) -> np.ndarray:
        """float32 of the tensor's shape; not to be written to. Raises CheckpointError for NaN and infinity."""
        source, change = self.edits.get(name, (name, None))
        if change is not None:
            return change(self._read(source))
        return self._read(name)

    def _read(self, name: str) -> np.ndarray:
        values: np.ndarray = np.asarray(self.checkpoint.read(self.found[name]).dequantize(), np.float32)
        self.checkpoint.release(self.found[name])
        if not np.isfinite(values).all():
            info = self.checkpoint.tensors[self.found[name]]
            raise CheckpointError(f"tensor {info.name!r} holds NaN or infinity", where=str(info.file), remedy="the weights are damaged: fetch them again")
        return values

    def stored(self, name: str) -> np.ndarray:
        """As the checkpoint has it, whatever was edited."""
        return np.asarray(self.checkpoint.read(self.found[name]).dequantize(), np.float32)

    def format(self, name: str) -> str:
        """What the checkpoint stores it in: bf16, fp16, fp32; fp32 for what is quantized there."""
        spec = self.checkpoint.tensors[self.found[name]].spec
        return "fp32" if spec is None or spec.quantized else spec.format

    def rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """These rows of a matrix, float32 [len(rows), k]: of a table of words, which is never read as a whole."""
        source, change = self.edits.get(name, (name, None))
        stored = self.found[source]
        n, k = self.checkpoint.tensors[stored].shape
        out = np.empty((len(rows), k), np.float32)
        for piece in np.unique(rows // PIECE):
            mine = rows // PIECE == piece
            values = self.checkpoint.read(stored, slice(int(piece) * PIECE, min(n, (int(piece) + 1) * PIECE))).dequantize()
            out[mine] = values[rows[mine] - piece * PIECE]
        self.checkpoint.release(stored)
        return out if change is None else change(out)


class _Rows:
    """An embedding as weight: rows on demand."""

    def __init__(self, weights: Weights, name: str, n: int, k: int) -> None:
        self._weights, self._name, self.n, self.k, self.nbytes = weights, name, n, k, 0

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        return self._weights.rows(self._name, tokens)


class Bound:
    """layers.Tensors over arrays, for ops that take them (RowsOps, TapeOps): `held` where they are named there, else the checkpoint, and then they are put
    there. `tables` likewise."""

    def __init__(self, ops: Any, weights: Weights, held: dict[str, np.ndarray], tables: dict[str, Vector]) -> None:
        self.ops, self._weights, self._held, self._tables = ops, weights, held, tables

    def _get(self, name: str) -> np.ndarray:
        if name not in self._held:
            self._held[name] = self._weights.get(name)
        return self._held[name]

    def weight(self, name: str, n: int, k: int, use: Use = "linear") -> Any:
        return _Rows(self._weights, name, n, k) if use == "embed" else Matrix(name, self._get(name))

    def vector(self, name: str, n: int) -> Value:
        return Vector(name, self._get(name))

    def table(self, table: Table) -> Value:
        if table.name not in self._tables:
            self._tables[table.name] = Vector(table.name, table.make())
        return self._tables[table.name]


class Block:
    """One layer. `tensors` holds its weights and vectors (float32, by name) once it has run, and what transforms made of them; `run` runs it from the
    same inputs as often as is asked, `finish` makes the last result the next layer's input.

    target   what the layer gives in the unrounded model, on inputs that no rounding has touched: after `refer`, None before and without
             Blocks(..., original=True)
    changes  called on each group before a visitor sees it; they may replace the values of its weights
    """

    def __init__(self, blocks: Blocks, layer: int) -> None:
        self.blocks, self.layer = blocks, layer
        self.tensors: dict[str, np.ndarray] = {}
        self.inputs = blocks.x
        self.output: Node | None = None
        self.target: Node | None = None
        self.changes: list[Callable[[Group], None]] = []
        self._calls: list[Call] = []
        self._reach: list[dict[str, np.ndarray]] | None = None

    def refer(self) -> None:
        """Runs the unrounded layer, with `tensors` as they are: after transforms, which change what its linears read and give but not what it computes."""
        blocks, ops = self.blocks, self.blocks.ops
        if blocks.original is None:
            return
        ops.calls = self._calls = []
        try:
            self.target = blocks.model.layer(blocks.bound(self.tensors), blocks.original, self.layer)
        finally:
            ops.calls = None
        ops.compute(self.target)

    def run(self, visit: Visitor | None = None, watch: Watcher | None = None) -> Node:
        """One forward of the layer; `visit` sees every group of linears in the order of computation, `watch` keys and values (see RowsOps). Nothing is
        computed beyond what they ask for."""
        def changed(group: Group) -> Sequence[np.ndarray] | None:
            assert visit is not None
            for change in self.changes:
                change(group)
            return visit(group)

        ops = self.blocks.ops
        ops.visit, ops.references = changed if visit is not None and self.changes else visit, iter(self._calls)
        ops.watch, ops.reach = watch, self.reach
        try:
            self.output = self.blocks.model.layer(self.blocks.bound(self.tensors), self.inputs, self.layer)
        finally:
            ops.visit, ops.watch, ops.reach, ops.references = None, None, None, iter(())
        return self.output

    def reach(self, names: Sequence[str]) -> np.ndarray | None:
        """How far errors of these linears reach at each place of a sequence, float32 [length] (see reach.py), where all of them stand before the layer's
        attention; else None. With the weights as they are when this is first asked for."""
        if self._reach is None:
            blocks, ops = self.blocks, self.blocks.ops
            self.load()

            def layer(tape: TapeOps, x: Var) -> None:
                blocks.model.layer(Bound(tape, blocks.weights, self.tensors, blocks.tables), x, self.layer)

            looked_at = range(0, len(ops.tokens), max(1, len(ops.tokens) // SEQUENCES))[:SEQUENCES]
            self._reach = self.map(lambda index: reach(layer, ops.sequence(self.inputs, index), (self.layer, index)), looked_at)
        if not all(name in known for known in self._reach for name in names):
            return None
        total: np.ndarray = np.sum([known[name] for known in self._reach for name in names], axis=0)
        return total

    def forget(self) -> None:
        """Lets go of what the last `run` computed: it takes several times the memory of the rows, and goes otherwise with the next run."""
        self.output = None

    @property
    def model(self) -> Decoder:
        return self.blocks.model

    def load(self) -> None:
        """Everything the layer reads into `tensors`, before it runs."""
        weights, prefix = self.blocks.weights, f"model.layers.{self.layer}."
        for name in weights.found:
            if name.startswith(prefix):
                self.tensors.setdefault(name, weights.get(name))

    def stored_format(self, name: str) -> str:
        """See Weights.format."""
        return self.blocks.weights.format(name)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """work(item) of each, in order, by all threads."""
        return list(self.blocks.ops.pool.map(work, items))

    def finish(self) -> None:
        """Computes the output of the last `run`; the next block starts from there."""
        assert self.output is not None
        self.blocks.ops.compute(self.output)
        self.blocks.x = self.output
        if self.blocks.original is not None:
            assert self.target is not None
            self.blocks.original = self.target
        self._calls, self.changes = [], []  # changes may hold this block, and with it all its rows


class Blocks:
    """with Blocks(...) as blocks: for block in blocks: block.run(...); block.finish().

    original   carry the outputs of the unrounded model along, too (see Block.target): one more forward, and memory for its rows
    """

    def __init__(self, model: Decoder, weights: Weights, tokens: np.ndarray, threads: int, *, original: bool = False) -> None:
        self.model, self.weights, self._carry = model, weights, original
        self.original: Node | None = None
        self.ops = RowsOps(tokens, threads)
        self._limits: Any = None
        self.tables: dict[str, Vector] = {}
        self.x: Node

    def __enter__(self) -> Blocks:
        self._limits = one_blas_thread()
        return self

    def __exit__(self, *error: object) -> None:
        self.ops.close()
        self._limits.restore_original_limits()

    def __iter__(self) -> Iterator[Block]:
        bound = self.bound({})
        name, model = "model.embed_tokens", self.model
        self.x = self.ops.embed(bound.weight(f"{name}.weight", model.vocab_size, model.hidden, "embed"), model.embed_factor)
        self.ops.compute(self.x)
        self.original = self.x if self._carry else None
        for layer in range(self.model.layers):
            yield Block(self, layer)

    def bound(self, tensors: dict[str, np.ndarray]) -> Bound:
        """What a description of the model reads from, see Bound."""
        return Bound(self.ops, self.weights, tensors, self.tables)
