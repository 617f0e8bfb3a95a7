"""Workloads: prompts and answers run through the engine as the server runs it, without HTTP, every step timed. For the verbs that measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .cache import PAGE, KVPool, Step
from .engine import Engine, EngineOptions, Request, Sampling
from .errors import OctavoError, UsageError
from .kernels.costs import Shape
from .kernels.native import NativeProgram

if TYPE_CHECKING:
    from .kernels.op import Draws
    from .loading import LoadedModel


ROWS = EngineOptions().max_batch_tokens  # rows of a prompt chunk


@dataclass
class Timed:
    """One step: what the engine took (began to ended), the model's forward in it, all in perf_counter_ns; marks: NativeProgram.last_trace."""

    shape: Shape
    began: int
    forward_began: int
    forward_ended: int
    ended: int = 0
    marks: tuple[int, int, list[list[tuple[int, int, int]]]] | None = None

    @property
    def seconds(self) -> float:
        return (self.ended - self.began) / 1e9

    @property
    def forward_seconds(self) -> float:
        return (self.forward_ended - self.forward_began) / 1e9


def native_program(loaded: LoadedModel) -> NativeProgram:
    """The program of a model of the native backend; UsageError for another backend, which describes and traces nothing."""
    if not isinstance(loaded.program, NativeProgram):
        raise UsageError(f"the {loaded.backend.name} backend cannot be measured", where="--backend", remedy="leave it out")
    return loaded.program


@dataclass
class _Watched:
    """A loaded model whose forwards are noted."""

    loaded: LoadedModel
    traced: bool
    steps: list[Timed] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loaded, name)

    def forward(self, step: Step, pool: KVPool) -> np.ndarray:
        began = time.perf_counter_ns()
        logits = self.loaded.forward(step, pool)
        ended = time.perf_counter_ns()
        shape = Shape(np.diff(step.starts).tolist(), step.lengths.tolist(), len(step.select))
        self.steps.append(Timed(shape, 0, began, ended, marks=native_program(self.loaded).last_trace() if self.traced else None))
        return logits


    def together(self, step: Step, pool: KVPool, steps: int, draws: Draws | None = None) -> tuple[np.ndarray, np.ndarray] | None:
        """Of steps that are computed in one call, each is said to take an equal part."""
        began = time.perf_counter_ns()
        found = self.loaded.together(step, pool, steps, draws)
        each = (time.perf_counter_ns() - began) // steps
        for turn in range(steps if found is not None else 0):
            shape = Shape(np.diff(step.starts).tolist(), (step.lengths + turn).tolist(), len(step.select))
            self.steps.append(Timed(shape, 0, began + turn * each, began + (turn + 1) * each))
        return found


def prefill(loaded: LoadedModel, prompt: int, *, repetitions: int = 1, traced: bool = False, note: Callable[[], None] = lambda: None) -> Iterator[list[Timed]]:
    """The steps from a prompt of random tokens to its first answer token, `repetitions` times. UsageError when the model does not take as many."""
    _check(loaded, prompt, 1, "--prompt")
    with _engine(loaded, 1, prompt + 1, traced) as (engine, watched):
        for repetition in range(repetitions):
            engine.submit(_request(loaded, prompt, 1, repetition))
            yield _steps(engine, watched, note)


def decode(loaded: LoadedModel, batch: int, context: int, new: int, *, traced: bool = False, note: Callable[[], None] = lambda: None) -> list[Timed]:
    """`new` steps in which each of `batch` sequences, of `context` random tokens before, gets one more token."""
    early = batch + 2 * batch * context // ROWS  # tokens that the first may have when the last begins
    _check(loaded, context, new + early, "--context")
    with _engine(loaded, batch, context + new + early, traced) as (engine, watched):
        for sequence in range(batch):
            engine.submit(_request(loaded, context, new + early, sequence))
        steps = _steps(engine, watched, note, enough=lambda: sum(_decodes(t, batch) for t in watched.steps) >= new)
    found = [t for t in steps if _decodes(t, batch)]
    if len(found) < new:
        raise OctavoError(f"only {len(found)} of {new} steps went through", where=loaded.name, remedy="the model's output may not be a number")
    return found[:new]


def _decodes(step: Timed, batch: int) -> bool:
    return len(step.shape.counts) == batch and step.shape.rows == batch


@contextmanager
def _engine(loaded: LoadedModel, batch: int, length: int, traced: bool) -> Iterator[tuple[Engine, _Watched]]:
    """An engine that is stepped by hand, with room for `batch` sequences of `length` tokens and no more."""
    watched = _Watched(loaded, traced)
    if traced:
        native_program(loaded).trace(True)
    try:
        engine = Engine(watched, EngineOptions(max_batch=batch, max_queue=batch, kv_pages=batch * (-(-length // PAGE) + 1), prefix_cache=False))  # type: ignore[arg-type]
        yield engine, watched
        engine.stop()
    finally:
        if traced:
            native_program(loaded).trace(False)


def _steps(engine: Engine, watched: _Watched, note: Callable[[], None], enough: Callable[[], bool] = lambda: False) -> list[Timed]:
    """Step until nothing is left or it is enough; the steps since the last call."""
    watched.steps = []
    while not enough():
        began, before = time.perf_counter_ns(), len(watched.steps)
        if not engine.step():
            break
        if len(watched.steps) == before or engine.telemetry.step_failures.total:
            raise OctavoError("a step failed", where=watched.loaded.name, remedy="the log says why")
        for step, following in pairwise(watched.steps[before:]):  # steps of a burst: each ends where the next one begins
            step.began, step.ended = began, following.forward_began
            began = step.ended
        watched.steps[-1].began, watched.steps[-1].ended = began, time.perf_counter_ns()
        note()
    return watched.steps


def _request(loaded: LoadedModel, prompt: int, new: int, seed: int) -> Request:
    tokens = np.random.default_rng(seed).integers(0, loaded.vocab_size, prompt)
    return Request(tuple(tokens.tolist()), Sampling(temperature=0.0, max_tokens=new, ignore_eos=True))


def _check(loaded: LoadedModel, prompt: int, new: int, where: str) -> None:
    if prompt + new > loaded.max_model_len:
        raise UsageError(f"{prompt} tokens and {new} more are beyond the model's {loaded.max_model_len}", where=where, remedy="ask for fewer")
