"""CUDA graphs of steps that only decode: inputs at fixed addresses that come over the bus in one copy, kernels that are launched at once.

What a graph's kernels write between themselves lies in memory that all graphs of a cache share, since no two of them run at once; logits are left in one place
for several of them (TritonProgram.room).
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .draw import DrawnRows

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ...cache import Step
    from ..op import Draws
    from .pool import GpuPool
    from .program import TritonProgram

ALIGN = 32       # int32 numbers: parts of a step begin at 128 bytes, so that kernels are not compiled for every alignment
MOST_AHEAD = 64  # steps launched without waiting for the first
TWICE = 2        # a step is captured when its bucket is met for this time: what runs once is not worth it


class Captures:
    """The graphs of one program over one cache, by bucket."""

    def __init__(self) -> None:
        self.met: Counter[tuple[int, int, bool]] = Counter()
        self.graphs: dict[tuple[int, int, bool], Graph] = {}
        self.refused: set[tuple[int, int, bool]] = set()
        self.memory: Any = None  # lives as long as one of the graphs: with the last of them torch gives it up

    def graph(self, key: tuple[int, int, bool], make: Callable[[Any], Graph]) -> Graph | None:
        """The graph of a bucket, made when it is met for the second time; None where there is no memory for it. make(memory)."""
        self.met[key] += 1
        if key not in self.graphs and key not in self.refused and self.met[key] >= TWICE:
            if self.memory is None:
                self.renew()
            try:
                self.graphs[key] = make(self.memory)
            except torch.cuda.OutOfMemoryError:
                log.warning("the GPU has no memory left to capture steps of up to %d users; they run slower", key[0])
                self.refused.add(key)
                self.renew()
        return self.graphs.get(key)

    def renew(self) -> None:
        """Another place in memory, where no graph holds the one there was."""
        if not self.graphs:
            self.memory = torch.cuda.graph_pool_handle()


class Lanes:
    """Streams on which products of the same inputs run side by side: branches of a graph. A product of few rows is over before the GPU is full, and one after
    the other the small ones of a layer (keys, values) would take as long as the large."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sides = [torch.cuda.Stream(device) for _ in range(3)]

    def together(self, works: Sequence[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
        """What each of the works returns; all are awaited by what comes next. What they read and make is used again only after that: no stream need be told."""
        here = torch.cuda.current_stream(self.device)
        beside = list(zip(works[1:], self.sides, strict=False))
        made: list[torch.Tensor] = []
        for work, side in beside:
            side.wait_stream(here)
            with torch.cuda.stream(side):
                made.append(work())
        first = [works[0](), *(work() for work in works[1 + len(beside) :])]
        for _, side in beside:
            here.wait_stream(side)
        return [first[0], *made, *first[1:]]


class Graph:
    """A captured step of `rows` sequences that decode, whose tables are `width` pages wide; `drawn`: their tokens are drawn, not only the likeliest found.
    After it, its inputs are those of the step that follows."""

    def __init__(self, program: TritonProgram, rows: int, width: int, drawn: bool, pool: GpuPool, device: torch.device, memory: Any,
                 together: Any = None) -> None:
        self.rows, self.width = rows, width
        layout = decode_layout(rows, width)
        self.host = torch.zeros(layout[-1][1], dtype=torch.int32, pin_memory=True)
        self.parts = [self.host[start:end].numpy() for start, _, end in ends(layout)]
        self.parts[2][:] = -1
        self.inputs = self.host.to(device)
        self.found = torch.zeros((MOST_AHEAD, 2, rows), dtype=torch.int32, pin_memory=True)
        self.copied = torch.cuda.Event()
        self.came: list[torch.cuda.Event] = []  # after each step of a run
        self.logits = program.room(rows)
        self.drawn = DrawnRows(rows, MOST_AHEAD, device) if drawn else None
        here, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        self.now = program.filled_up(rows, width, pool, self.inputs)  # holds what the graph reads
        self.now.together = together
        slots = list(self.now.values)
        side.wait_stream(here)
        with torch.cuda.stream(side):  # what is compiled or allocated at a first run must not happen while capturing
            self._step(program)
        here.wait_stream(side)
        torch.cuda.synchronize(device)
        self.now.values = slots
        self.graph = torch.cuda.CUDAGraph()
        collecting = gc.isenabled()
        gc.disable()  # a tensor that is given back to the GPU while capturing ends the capture
        try:
            with torch.cuda.graph(self.graph, pool=memory, capture_error_mode="thread_local"):
                self.best = self._step(program)
        finally:
            if collecting:
                gc.enable()
        self.now.pool = None  # type: ignore[assignment]  # the cache holds the graphs, not they it

    def _step(self, program: TritonProgram) -> torch.Tensor:
        logits, best = program.step(self.now, self.drawn)
        self.logits.copy_(logits)
        return best

    def run(self, step: Step, steps: int = 1, draws: Draws | None = None) -> tuple[torch.Tensor, np.ndarray]:
        """(logits of the last, `found` int32 [steps, 2, rows] as program.largest gives it, or what was drawn; there once the stream has come so far)."""
        rows, width = step.tables.shape
        self.copied.synchronize()  # the copy of the step before has read what is written now
        for part, array in zip(self.parts, (step.tokens, step.positions, step.slots, step.lengths), strict=False):
            part[:rows] = array
        self.parts[2][rows:], self.parts[3][rows:] = -1, 0
        self.parts[4][: self.rows * self.width].reshape(self.rows, self.width)[:rows, :width] = step.tables
        self.inputs.copy_(self.host, non_blocking=True)
        if self.drawn is not None and draws is not None:
            self.drawn.set(draws, self.logits.shape[1])
        self.copied.record()
        while len(self.came) < steps:
            self.came.append(torch.cuda.Event())
        for turn in range(steps):
            self.graph.replay()
            self.found[turn].copy_(self.best, non_blocking=True)
            self.came[turn].record()
        return self.logits[:rows], self.found.numpy()[:steps, :, :rows]


def decode_layout(rows: int, width: int) -> list[tuple[int, int]]:
    """(length, end) of tokens, positions, slots, lengths and tables in the inputs of a captured step."""
    layout, end = [], 0
    for length in (rows, rows, rows, rows, rows * width):
        end += -(-length // ALIGN) * ALIGN
        layout.append((length, end))
    return layout


def ends(layout: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(start, start + length, end of the room) of each part."""
    starts = [0, *(end for _, end in layout)]
    return [(start, start + length, end) for start, (length, end) in zip(starts, layout, strict=False)]


def views(numbers: torch.Tensor, layout: list[tuple[int, int]]) -> list[torch.Tensor]:
    return [numbers[start:stop] for start, stop, _ in ends(layout)]
