"""TritonProgram: a recorded forward, run step after step; steps that only decode are captured as CUDA graphs (graphs.py).

A graph is a step of a fixed number of rows with tables of a fixed width: buckets of both. Rows that only fill one up have no slot and no tokens, so they
write nothing and see nothing. Logits stay on the GPU until somebody asks for them; the largest of each row is sent back with the step, and tokens are drawn
there (draw.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import triton
import triton.language as tl

from ...cache import PAGE, Step
from ..op import Draws
from ._rounding import power
from .attention import SPLIT, Attending
from .choices import ROWS, Product
from .draw import DrawnRows, draw
from .graphs import ALIGN, MOST_AHEAD, Captures, Graph, Lanes, decode_layout, ends, views
from .pool import GpuPool

log = logging.getLogger(__name__)
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # rows of captured steps
MOST_BESIDE = 64  # rows up to which a product leaves room on the GPU for another
NARROWEST = SPLIT // PAGE  # pages of a captured step's tables: attention of fewer tokens is one run all the same


@dataclass
class Now:
    """What ops see of the step that runs. together: runs products of the same inputs side by side, where that pays. values: by slot of the recording."""

    rows: int
    logit_rows: int
    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    select: torch.Tensor
    who: Attending
    pool: GpuPool
    inner: torch.dtype
    values: list[Any]
    together: Any = None

    def make(self, slot: int, width: int, logits: bool, wide: bool) -> torch.Tensor:
        """A new buffer [rows, width] in `slot`; what was there is free from now on."""
        self.values[slot] = None
        made = torch.empty((self.logit_rows if logits else self.rows, width), dtype=torch.float32 if wide else self.inner, device=self.tokens.device)
        self.values[slot] = made
        return made


def _arriving(graph: Graph, found: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for turn, one in enumerate(found):
        graph.came[turn].synchronize()
        if (one[0] < 0).any():
            return
        yield one[0].copy(), np.ascontiguousarray(one[1]).view(np.float32)


@dataclass(frozen=True)
class Op:
    """`run` reads and fills slots. logits: it works on the step's logit rows, and is left out where there are none."""

    name: str
    run: Callable[[Now], None]
    logits: bool


class Logits:
    """Logits float32 [rows, vocabulary] on the GPU; copied where they are read (np.asarray, indexing). The next run writes them again."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape, self.ndim, self.dtype = tuple(tensor.shape), 2, np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, (int, slice)):
            found: np.ndarray = self.tensor[key].cpu().numpy()
            return found
        return np.asarray(self)[key]  # type: ignore[no-any-return]

    def draw(self, rows: Sequence[int], temperatures: Sequence[float], top_k: Sequence[int], top_p: Sequence[float], min_p: Sequence[float],
             u: Sequence[float]) -> list[int]:
        """Tokens of some rows as csrc/sampling.h draws them, drawn where the logits lie; -1 for a row that has to be drawn on the CPU."""
        return draw(self.tensor, rows, temperatures, top_k, top_p, min_p, u)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole: np.ndarray = self.tensor.cpu().numpy()
        return whole if dtype is None else whole.astype(dtype, copy=False)


class TritonProgram:
    """One run at a time. `run` starts the work; it is awaited where its results are read (`best`, Logits)."""

    def __init__(self, ops: Sequence[Op], slots: int, result: int, device: torch.device, inner: torch.dtype, tile_rows: frozenset[int],
                 bounds: tuple[int, int], width: int, keep: list[Any], products: Sequence[Product] = ()) -> None:
        """tile_rows: of the attentions (attention.tile_rows); bounds: tokens and positions must be below them; width: of the result; keep: what lives as
        long as this does; products: of the ops, in their order."""
        self.ops, self._slots, self._result, self._device, self.inner, self._keep = list(ops), slots, result, device, inner, keep
        self._tile_rows, self._bounds, self._width = tile_rows, bounds, width
        self._largest: Any = np.zeros((2, 0), np.int32)  # or a tensor on its way, see `largest`
        self.captures = device.type == "cuda"  # the interpreter runs every step as it comes
        self.lanes: Lanes | None = None
        self.forks = True
        self._products = list(products)
        self._captures: WeakKeyDictionary[GpuPool, Captures] = WeakKeyDictionary()  # a graph knows the addresses of one cache
        self._room: dict[int, torch.Tensor] = {}

    buckets: Sequence[int] = ROWS
    settles = 3  # runs of a step before its time is that of all later ones: kernels are compiled, then it is captured, then replayed

    def linears(self) -> list[dict[str, Any]]:
        """What kernels go by, of each product in the order of recording, with `bytes` of the weight and whether it works on `logits` rows."""
        return [{**one.facts, "bytes": one.weight.nbytes, "logits": one.logits} for one in self._products]

    def products(self) -> list[Product]:
        return list(self._products)

    def choose(self, linear: int, bucket: int, kernel: str) -> None:
        """Which kernel runs a product for a bucket of rows (an index of `buckets`); "" is the usual one. ValueError for what cannot."""
        self._products[linear].choose(bucket, kernel)
        self._captures.clear()  # graphs replay what was chosen when they were captured

    def chosen(self, linear: int, bucket: int) -> str:
        """The name of the kernel that runs a product for a bucket of rows."""
        return self._products[linear].chosen(bucket)

    def run(self, step: Step, pool: GpuPool) -> Any:
        """float32 [logit_rows, vocab], a view that the next run overwrites; Logits on a GPU. Raises ValueError for a step that points outside its arrays."""
        check(step, pool, *self._bounds)
        graph = self._captured(step, pool) if self.captures else None
        if graph is not None:
            logits, found = graph.run(step)
            self._largest = found[0]
        else:
            logits = self.replay(now_of(step, pool, self._device, self.inner, self._slots, self._tile_rows))
            self._largest = largest(logits)
        return Logits(logits) if self.captures else logits.numpy()

    def best(self, logits: Any) -> tuple[np.ndarray, np.ndarray]:
        """(place, value) of the largest logit of each row of the last run; a NaN counts as the largest of all. Waits for the run."""
        found = self._largest if isinstance(self._largest, np.ndarray) else self._largest.cpu().numpy()
        self._wait()
        return found[0, : len(logits)], np.ascontiguousarray(found[1, : len(logits)]).view(np.float32)

    def ahead(self, step: Step, pool: GpuPool, steps: int, draws: Draws | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]] | None:
        """(tokens, largest logits) [sequences] of each of so many steps in which every sequence goes on with its likeliest token, or the one drawn: all are
        launched at once, and come as they are done. Fewer come where a token must be drawn on the CPU. None where that is not captured: then the caller goes
        step by step. The tables must have pages for all of it. The next run must wait until all have come."""
        if not self.captures or steps > MOST_AHEAD:
            return None
        check(step, pool, *self._bounds)
        graph = self._captured(step, pool, draws is not None)
        if graph is None:
            return None
        _, found = graph.run(step, steps, draws)
        return _arriving(graph, found)

    def _wait(self) -> None:
        if self.captures:
            torch.cuda.current_stream(self._device).synchronize()

    def replay(self, now: Now) -> torch.Tensor:
        """All ops in order; the logits."""
        for op in self.ops:
            if now.logit_rows or not op.logits:
                op.run(now)
        found: torch.Tensor = now.values[self._result] if now.logit_rows else torch.empty((0, self._width), device=self._device)
        now.values.clear()
        return found

    def _captured(self, step: Step, pool: GpuPool, drawn: bool = False) -> Graph | None:
        """The graph for a step that only decodes, if it has been met often enough; it is captured now where it is not there."""
        found = graph_key(step)
        if found is None:
            return None
        key = (*found, drawn)
        held = self._captures.get(pool)
        if held is None:
            held = self._captures[pool] = Captures()
        return held.graph(key, lambda memory: self._graph(key, pool, held))

    def _graph(self, key: tuple[int, int, bool], pool: GpuPool, held: Captures) -> Graph:
        """A new graph; without branches from the first time on that these cannot be captured."""
        if self.forks and key[0] <= MOST_BESIDE:
            self.lanes = self.lanes or Lanes(self._device)
            try:
                return Graph(self, *key, pool, self._device, held.memory, self.lanes.together)
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                log.warning("steps are captured without branches: %s", error)
                self.forks = False
                held.renew()
        return Graph(self, *key, pool, self._device, held.memory)

    def step(self, now: Now, drawn: DrawnRows | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """What a graph holds: all ops, the largest of each row (see `largest`) or what is drawn from it, and inputs that become those of the next step. The
        logits, and the largest or drawn."""
        logits = self.replay(now)
        best = largest(logits)
        if drawn is not None:
            best = drawn.into(best, logits)
        advance(now, best)
        return logits, best

    def room(self, rows: int) -> torch.Tensor:
        """float32 [rows, width] on the device, where graphs leave their logits: one place for several buckets, since no two of them run at once."""
        most = next(size for size in (16, 64, BUCKETS[-1]) if rows <= size)
        if most not in self._room:
            self._room[most] = torch.empty((most, self._width), dtype=torch.float32, device=self._device)
        return self._room[most][:rows]

    def filled_up(self, rows: int, width: int, pool: GpuPool, numbers: torch.Tensor) -> Now:
        """A step of `rows` sequences that decode, with its inputs in `numbers` (int32 on the device, see `decode_layout`)."""
        tokens, positions, slots, lengths, tables = views(numbers, decode_layout(rows, width))
        places = torch.arange(rows + 1, dtype=torch.int32, device=self._device)
        who = Attending(places[:rows], places[:rows], -(-width * PAGE // SPLIT), {}, places, lengths, tables.view(rows, width))
        return Now(rows, rows, tokens, positions, slots, places[:rows], who, pool, self.inner, [None] * self._slots)


@triton.jit
def _advance(tokens, positions, slots, lengths, tables, best, rows, width, PAGE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    length = tl.load(lengths + at, mask=at < rows, other=0)
    alive = length > 0
    position = tl.load(positions + at, mask=alive, other=0) + 1
    page = tl.load(tables + at * width + position // PAGE, mask=alive & (position < width * PAGE), other=0)
    tl.store(tokens + at, tl.maximum(tl.load(best + at, mask=alive, other=0), 0), mask=alive)  # -1: drawn by the CPU, what follows is not used
    tl.store(positions + at, position, mask=alive)
    tl.store(lengths + at, length + 1, mask=alive)
    tl.store(slots + at, page * PAGE + position % PAGE, mask=alive)


def graph_key(step: Step) -> tuple[int, int] | None:
    """(rows, pages of a table) of the bucket of a step in which every sequence has one row and wants its logits; None for any other step."""
    rows = len(step.tokens)
    if not 0 < rows <= BUCKETS[-1] or len(step.starts) != rows + 1 or len(step.select) != rows or not np.array_equal(step.select, step.starts[:-1]):
        return None
    return next(bucket for bucket in BUCKETS if bucket >= rows), max(NARROWEST, 1 << (step.tables.shape[1] - 1).bit_length())


def advance(now: Now, best: torch.Tensor) -> None:
    """Turns the inputs of a decoding step into those of the next: each sequence goes on with the token best[0]."""
    tables = now.who.tables
    _advance[(1,)](now.tokens, now.positions, now.slots, now.who.lengths, tables, best, now.rows, tables.shape[1], PAGE=PAGE, BLOCK=power(now.rows),
                   num_warps=1)


def largest(logits: torch.Tensor) -> torch.Tensor:
    """int32 [2, rows]: the place of the largest logit of each row, and its value's bits; a NaN counts as the largest of all."""
    if not len(logits):
        return torch.zeros((2, 0), dtype=torch.int32)
    value, place = torch.max(logits, dim=1)  # the first of equal ones
    return torch.stack([place.to(torch.int32), value.view(torch.int32)])


def now_of(step: Step, pool: GpuPool, device: torch.device, inner: torch.dtype, slots: int, tile_rows: frozenset[int]) -> Now:
    """Any step, in one copy to the device."""
    counts = np.diff(step.starts)
    singles = np.flatnonzero(counts == 1).astype(np.int32)
    others = np.flatnonzero(counts > 1)
    arrays = [step.tokens, step.positions, step.slots, step.select, step.starts, step.lengths, step.tables.reshape(-1), step.starts[:-1][singles], singles]
    sizes = sorted(tile_rows)
    arrays += [_tiles(step.starts, others, size) for size in sizes]
    parts = _upload(arrays, device)
    tokens, positions, slot, select, starts, lengths, tables, rows, sequences = parts[:9]
    longest = int(step.lengths[singles].max()) if len(singles) else 1
    who = Attending(rows, sequences, max(-(-longest // SPLIT), 1), {size: part.view(-1, 2) for size, part in zip(sizes, parts[9:], strict=True)}, starts,
                    lengths, tables.view(step.tables.shape))
    return Now(len(step.tokens), len(step.select), tokens, positions, slot, select, who, pool, inner, [None] * slots)


def _tiles(starts: np.ndarray, sequences: np.ndarray, size: int) -> np.ndarray:
    """int32 [2 * count]: sequence and first row of each tile of `size` rows."""
    found = [np.stack([np.full_like(first, s), first], axis=1) for s in sequences
             if len(first := np.arange(starts[s], starts[s + 1], size, dtype=np.int32))]
    return np.concatenate(found).reshape(-1).astype(np.int32) if found else np.zeros(0, np.int32)


def _upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The int32 arrays (one-dimensional) on the device, in one copy."""
    layout, end = [], 0
    for array in arrays:
        end += -(-len(array) // ALIGN) * ALIGN
        layout.append((len(array), end))
    joined = np.zeros(max(end, 1), np.int32)
    for (start, stop, _), array in zip(ends(layout), arrays, strict=True):
        joined[start:stop] = array
    return views(torch.from_numpy(joined).to(device), layout)


def check(step: Step, pool: GpuPool, vocabulary: int, positions: int) -> None:
    """Raises ValueError for a step that would make a kernel read or write outside its arrays."""
    rows, sequences = len(step.tokens), len(step.lengths)
    if len(step.positions) != rows or len(step.slots) != rows or len(step.starts) != sequences + 1 or len(step.tables) != sequences:
        raise ValueError("the arrays of the step do not fit each other")
    if not rows:
        return
    if step.starts[0] != 0 or step.starts[-1] != rows or (sequences > 1 and (step.starts[1:] <= step.starts[:-1]).any()):
        raise ValueError("starts do not cut the rows into sequences")
    for name, array, limit in (("a token is outside of the vocabulary", step.tokens, vocabulary),
                               ("a position is beyond the rope table", step.positions, positions),
                               ("a slot is outside the cache", step.slots, pool.pages * PAGE), ("a page is outside the cache", step.tables, pool.pages),
                               ("select names a row that is not there", step.select, rows),
                               ("a table is too short for its sequence", step.lengths, step.tables.shape[1] * PAGE + 1)):
        if len(array) and (int(array.min()) < 0 or int(array.max()) >= limit):
            raise ValueError(name)
    if (step.lengths < np.diff(step.starts)).any():
        raise ValueError("a sequence has fewer tokens than new rows")
