"""Questions about the whole model: steps of several sequences, replayed over one cache; and the same through the engine, end to end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..cache import PAGE, KVPool, Step
from ..engine import Engine, EngineOptions, Request, Sampling
from ..kernels.op import Program
from ..loading import LoadedModel
from ..schemes import CacheSpec, TensorSpec
from .native import one_sequence

Work = Callable[[], float]


@dataclass
class WorkQuestion:
    """A question whose ways are functions that return seconds. `refusals`: candidates that are out before they are timed, and why."""

    key: str
    what: str
    rows: str
    default: str
    works: dict[str, Work]
    refusals: dict[str, str] = field(default_factory=dict)
    on_close: Callable[[], None] = lambda: None

    @property
    def candidates(self) -> Sequence[str]:
        return [name for name in self.works if name != self.default]

    def check(self, candidate: str) -> str | None:
        return self.refusals.get(candidate)

    def seconds(self, candidate: str) -> float:
        return self.works[candidate]()

    def close(self) -> None:
        self.on_close()


def decoding(users: int, context: int) -> Step:
    """One new token for each of `users` sequences that hold `context` tokens with it."""
    pages = -(-context // PAGE)
    tables = np.arange(users * pages, dtype=np.int32).reshape(users, pages)
    positions = np.full(users, context - 1, np.int32)
    return Step(
        tokens=np.arange(users, dtype=np.int32), positions=positions, slots=tables[:, -1] * PAGE + positions % PAGE,
        starts=np.arange(users + 1, dtype=np.int32), lengths=positions + np.int32(1), tables=tables, select=np.arange(users, dtype=np.int32))


def prompt(tokens: int, chunk: int) -> list[Step]:
    """The steps that compute a prompt in chunks. (All select their last row: one row of the head more or less.)"""
    return [one_sequence(min(chunk, tokens - before), before) for before in range(0, tokens, chunk)]


class Steps:
    """Runs steps of a model over a cache of its own, as large as the largest step asked for."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.pools: dict[str, KVPool] = {}
        self._settled: set[tuple[int, int, int, tuple[int, ...]]] = set()

    def seconds(self, program: Program, steps: Sequence[Step], repeat: int = 1, spec: TensorSpec | CacheSpec | None = None) -> float:
        """Of the steps once, on average; `spec`: another format of the cache."""
        pool = self.pool(max(int(step.tables.max()) + 1 for step in steps), spec or self.loaded.cache_spec)
        for step in steps:
            self._settle(program, step, pool)
        began = time.perf_counter()
        for _ in range(repeat):
            for step in steps:
                program.best(program.run(step, pool))  # which a device is waited for
        return (time.perf_counter() - began) / repeat

    def _settle(self, program: Program, step: Step, pool: KVPool) -> None:
        """Run a step, untimed, until it takes what all later ones do: the first ones of a device are compiled and captured."""
        key = id(program), id(pool), len(step.tokens), step.tables.shape
        if key not in self._settled:
            self._settled.add(key)
            for _ in range(getattr(program, "settles", 0)):
                program.best(program.run(step, pool))

    def pool(self, pages: int, spec: TensorSpec | CacheSpec) -> KVPool:
        held = self.pools.get(spec.format)
        if held is None or held.pages < pages:
            held = self.pools[spec.format] = self.loaded.new_pool(pages, spec)
        return held

    def release(self) -> None:
        self.pools.clear()
        self._settled.clear()


def geometric(times: Sequence[float]) -> float:
    """Each counts by its ratio, however long it takes."""
    return math.exp(sum(map(math.log, times)) / len(times))


@dataclass(frozen=True)
class Load:
    """Requests for the engine: `users` prompts of `prompt` tokens, answers of `answer` tokens."""

    what: str
    users: int
    prompt: int
    answer: int


class EngineWork:
    """An engine without its thread, stepped to the end of a load. Greedy; the prefix cache is off, so that every run does the same work."""

    def __init__(self, loaded: LoadedModel, options: EngineOptions, load: Load) -> None:
        self.load, vocabulary = load, loaded.vocab_size
        self.engine = Engine(loaded, options)
        self.prompts = [tuple((7 * user + token) % vocabulary for token in range(load.prompt)) for user in range(load.users)]
        self.sampling = Sampling(temperature=0, max_tokens=load.answer, ignore_eos=True)
        self._settles = getattr(loaded.program, "settles", 0)

    def __call__(self) -> float:
        while self._settles:
            self._settles -= 1
            self._run()
        return self._run()

    def _run(self) -> float:
        for tokens in self.prompts:
            self.engine.submit(Request(tokens, self.sampling))
        began = time.perf_counter()
        while self.engine.step():
            pass
        return time.perf_counter() - began


def engine_options(load: Load, *, max_batch: int, max_batch_tokens: int) -> EngineOptions:
    pages = load.users * (-(-(load.prompt + load.answer) // PAGE) + 1)
    return EngineOptions(max_batch=max_batch, max_batch_tokens=max_batch_tokens, kv_pages=max(2, pages), prefix_cache=False, max_queue=max(load.users, 1))
