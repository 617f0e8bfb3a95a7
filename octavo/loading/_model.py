"""LoadedModel: a model that answers."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..cache import PAGE, KVPool, Step, Tuning
from ..errors import CapacityError
from ..kernels.op import Backend, Draws, Ops, Value, Weight
from ..layers import Table
from ..layers.tensors import Use
from ..models import Decoder
from ..schemes import CacheSpec, Plan, TensorSpec, cache_pairs
from ..text import Text
from ._choices import make_backend
from ._report import LoadReport
from ._tuning import keep, kept, measure, reach_of, tuning


class Bound:
    """The tensors of a loaded model, by name (see layers.Tensors)."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.weights: dict[str, Weight] = {}
        self.vectors: dict[str, Value] = {}
        self.tables: dict[str, Value] = {}

    def weight(self, name: str, n: int, k: int, use: Use = "linear") -> Weight:
        return self.weights[name]

    def vector(self, name: str, n: int) -> Value:
        return self.vectors[name]

    def table(self, table: Table) -> Value:
        return self.tables[table.name]


class LoadedModel:
    """One model in memory, with its tokenizer. `forward` is for one thread at a time.

    config         the Hugging Face config of the source
    kv_heads, head_dims   of each layer
    plan           the precision that was asked for; `report.notes` says what runs otherwise
    cache_spec     format of the key-value cache
    statics        stored scales of the cache, (keys, values) of each layer, where it has such
    """

    def __init__(self, name: str, model: Decoder, bound: Bound, backend: Backend, text: Text, config: Mapping[str, Any], plan: Plan,
                 cache_spec: TensorSpec | CacheSpec, report: LoadReport, statics: Sequence[tuple[float, float]] | None = None) -> None:
        self.name, self.text, self.config, self.plan, self.cache_spec, self.report = name, text, dict(config), plan, cache_spec, report
        self.vocab_size, self.max_model_len = model.vocab_size, model.max_model_len
        self.kv_heads, self.head_dims = model.kv_heads, model.head_dims
        self.model, self.backend, self.bound = model, backend, bound
        self.eos_token_ids = _end_ids(text, config, model)
        self.program = backend.capture(lambda ops: model.describe(bound))
        self.statics = statics
        self._balances: list[np.ndarray] | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """What a token of context takes in the key-value cache, all layers together."""
        return KVPool.bytes_per_page(self.kv_heads, self.head_dims, self.cache_spec) // PAGE

    def describe_on(self, ops: Any) -> Value:
        """The forward, on ops that wrap those of the backend."""
        bound = Bound(ops)
        bound.weights, bound.vectors, bound.tables = self.bound.weights, self.bound.vectors, self.bound.tables
        return self.model.describe(bound)

    def run_on(self, backend: Backend) -> None:
        """Record the forward anew on another backend of the same kind (with other threads), over the same weights."""
        bound = Bound(backend)
        bound.weights, bound.vectors, bound.tables = self.bound.weights, self.bound.vectors, self.bound.tables
        self.program = backend.capture(lambda ops: self.model.describe(bound))
        self.backend, self.bound = backend, bound

    def twin(self, threads: int | None = None) -> LoadedModel:
        """The same model with kernels of its own (`threads` of them; None: all cores), to compute beside this one; shares its weights."""
        other = copy.copy(self)
        other.run_on(make_backend(self.backend.name, threads, getattr(self.backend, "isa", None)))
        return other

    def with_tensors_of(self, other: LoadedModel, names: Collection[str]) -> LoadedModel:
        """This model with the weights and vectors `names` of another of the same architecture and backend; shares the memory of both."""
        mixed = copy.copy(self)
        bound = mixed.bound = Bound(self.backend)
        bound.weights = {name: (other if name in names else self).bound.weights[name] for name in self.bound.weights}
        bound.vectors = {name: (other if name in names else self).bound.vectors[name] for name in self.bound.vectors}
        bound.tables = self.bound.tables
        mixed.program = self.backend.capture(lambda ops: self.model.describe(bound))
        return mixed

    def with_inputs(self, activation: TensorSpec) -> LoadedModel:
        """This model with the inputs of all linears in another precision, of the native backend; shares the weights' memory. Raises KernelError."""
        other = copy.copy(self)
        bound = other.bound = Bound(self.backend)
        bound.weights = {name: self.backend.adopt(weight.packed, activation) for name, weight in self.bound.weights.items()}  # type: ignore[attr-defined]
        bound.vectors, bound.tables = self.bound.vectors, self.bound.tables
        other.program = self.backend.capture(lambda ops: self.model.describe(bound))
        return other

    def forward(self, step: Step, pool: KVPool) -> np.ndarray:
        """Logits float32 [logit_rows, vocab]; a buffer that the next forward may write again."""
        return self.program.run(step, pool)

    def best(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place, value) of the largest of each row of what the last `forward` gave; a NaN counts as the largest of all."""
        return self.program.best(logits)

    def ahead(self, step: Step, pool: KVPool, steps: int, draws: Draws | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]] | None:
        """(tokens, largest logits) [sequences] of each of so many steps that a device computes without coming back, as they are done, greedy or drawn; fewer
        where a token must be drawn here. None: go step by step. All of them must be taken before the next step."""
        go = getattr(self.program, "ahead", None)
        return None if go is None else go(step, pool, steps, draws)

    def together(self, step: Step, pool: KVPool, steps: int, draws: Draws | None = None) -> tuple[np.ndarray, np.ndarray] | None:
        """(tokens, largest logits) [steps, sequences] of so many steps that a program computes in one call, greedy or drawn. None: go step by step."""
        go = getattr(self.program, "together", None)
        return None if go is None else go(step, pool, steps, draws)

    def copy_page(self, pool: KVPool, source: int, target: int) -> None:
        """Make page `target` of the key-value cache equal to page `source`."""
        pool.copy_page(source, target)

    def tuning(self, spec: TensorSpec | CacheSpec) -> list[Tuning]:
        """What a cache of this format is told (cache.Tuning). The balance of keys is measured when it is first needed, and kept beside the copy."""
        layers = len(self.kv_heads)
        if self._balances is None and self.backend.balanced and any(keys.quantized and keys.dynamic for keys, _ in cache_pairs(spec, layers)):
            found = kept(self.report.copy, reach_of(self))
            if found is None or [one.shape for one in found] != [(5, h, d) for h, d in zip(self.kv_heads, self.head_dims, strict=True)]:
                found = measure(self)
                if self.report.copy:
                    keep(self.report.copy, reach_of(self), found)
            self._balances = found
        return tuning(self._balances, self.statics, layers)

    def new_pool(self, pages: int, spec: TensorSpec | CacheSpec | None = None) -> KVPool:
        """An empty key-value cache of `pages` pages; `spec`: in another format than the model's. Raises CapacityError when there is no memory for it."""
        spec = spec or self.cache_spec
        try:
            return self.backend.new_pool(pages, self.kv_heads, self.head_dims, spec, self.tuning(spec))
        except MemoryError:
            size = KVPool.bytes_per_page(self.kv_heads, self.head_dims, spec)
            raise CapacityError(f"a key-value cache of {pages} pages needs {pages * size / 1e6:.0f} MB, which are not there", where="memory",
                                remedy="use fewer pages or an 8-bit cache") from None


def _end_ids(text: Text, config: Mapping[str, Any], model: Decoder) -> tuple[int, ...]:
    """Tokens that end an answer: those of generation config and tokenizer, then those of the config, without repetition."""
    named = config.get("eos_token_id", model.config.get("eos_token_id"))
    ids = [*text.eos_ids, *(named if isinstance(named, list) else [named])]
    return tuple(dict.fromkeys(i for i in ids if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < model.vocab_size))
