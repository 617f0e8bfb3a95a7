"""Captured steps: when they are made, what they are given, and that runs ahead give the tokens of single steps. Graphs themselves need a GPU: here they are
the same kernels over the same fixed places, run one after another in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kernels.test_native import CACHES, VOCAB, prompt, step_of, toy

from octavo import _native
from octavo.cache import PAGE, Step
from octavo.kernels.op import Draws
from octavo.kernels.triton import graphs, program
from octavo.kernels.triton.draw import DrawnRows
from octavo.kernels.triton.graphs import MOST_AHEAD, Captures, decode_layout
from octavo.kernels.triton.ops import TritonOps
from octavo.kernels.triton.program import graph_key


class Done:
    def synchronize(self) -> None:
        pass


class Replayed:
    """What graphs.Graph does, without a graph."""

    def __init__(self, of: Any, rows: int, width: int, drawn: bool, pool: Any, device: Any, memory: Any, together: Any = None) -> None:
        self.of, self.rows, self.drawn = of, rows, DrawnRows(rows, MOST_AHEAD, device) if drawn else None
        self.numbers = torch.zeros(decode_layout(rows, width)[-1][1], dtype=torch.int32)
        self.now = of.filled_up(rows, width, pool, self.numbers)
        self.slots, self.came = list(self.now.values), [Done()] * MOST_AHEAD

    def run(self, step: Step, steps: int = 1, draws: Draws | None = None) -> tuple[torch.Tensor, np.ndarray]:
        count, found = len(step.tokens), []
        self.now.slots.fill_(-1)
        self.now.who.lengths.fill_(0)
        for part, array in ((self.now.tokens, step.tokens), (self.now.positions, step.positions), (self.now.slots, step.slots),
                            (self.now.who.lengths, step.lengths)):
            part[:count] = torch.from_numpy(array)
        self.now.who.tables[:count, : step.tables.shape[1]] = torch.from_numpy(step.tables)
        if self.drawn is not None and draws is not None:
            self.drawn.set(draws, VOCAB)
        for _ in range(steps):
            self.now.values = list(self.slots)
            logits, best = self.of.step(self.now, self.drawn)
            found.append(best.numpy().copy())
        return logits[:count], np.stack(found)[:, :, :count]


def next_step(step: Step, tokens: np.ndarray) -> Step:
    positions = step.positions + np.int32(1)
    slots = step.tables[np.arange(len(tokens)), positions // PAGE] * PAGE + positions % PAGE
    return Step(tokens.astype(np.int32), positions, slots.astype(np.int32), step.starts, step.lengths + np.int32(1), step.tables, step.select)


def test_a_run_ahead_gives_the_tokens_of_single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sequence that takes its likeliest token and one whose tokens are drawn."""
    monkeypatch.setattr(program, "Graph", Replayed)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a place")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Done())
    ops, steps, u = TritonOps(), 2, np.random.default_rng(0).random((2, 2))
    made, heads, dims = toy(ops)
    pools = [ops.new_pool(20, heads, dims, CACHES["fp32"]) for _ in range(2)]
    made.run(step_of([(prompt(2), 0, [3]), (prompt(1, 1), 0, [2])]), pools[0])
    for one, other in zip(pools[0].layers, pools[1].layers, strict=True):
        for array, copy in zip(one.arrays, other.arrays, strict=True):
            copy.copy_(array)
    step, wanted, drawer = step_of([([7], 2, [3]), ([5], 1, [2])]), [], _native.Drawer(_native.Team(1))
    first = step
    for turn in range(steps):
        logits = np.array(made.run(step, pools[0]))
        tokens = logits.argmax(axis=1)
        (tokens[1],) = drawer.draw(logits, [1], [0.9], [0], [0.95], [0.0], [u[turn, 1]])
        wanted.append(tokens)
        step = next_step(step, tokens)
    made.captures, made.forks = True, False
    draws = Draws(np.array([0, 0.9]), np.zeros(2, np.int64), np.array([1, 0.95]), np.zeros(2), u)
    assert made.ahead(first, pools[1], steps, draws) is None  # met for the first time
    found = made.ahead(first, pools[1], steps, draws)
    assert found is not None and [tokens.tolist() for tokens, _ in found] == [tokens.tolist() for tokens in wanted]
    assert made.ahead(first, pools[1], MOST_AHEAD + 1) is None and made.settles >= 3


class Stream:
    """Notes what waits for what."""

    log: list[str] = []  # noqa: RUF012

    def __init__(self, name: Any = "side") -> None:
        self.name = name

    def wait_stream(self, other: Any) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def __enter__(self) -> None:
        self.log.append(f"on {self.name}")

    def __exit__(self, *_: object) -> None:
        self.log.append("back")


@pytest.mark.parametrize("count", [2, 3, 5])
def test_products_side_by_side(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every branch begins after what came before and is awaited by what follows; results keep their order, also where there are more than streams."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    Stream.log.clear()
    lanes = graphs.Lanes(torch.device("cpu"))
    for index, side in enumerate(lanes.sides):
        side.name = f"side {index}"  # type: ignore[attr-defined]
    assert lanes.together([lambda i=i: torch.tensor(i) for i in range(count)]) == list(map(torch.tensor, range(count)))  # type: ignore[misc]
    beside = min(count - 1, len(lanes.sides))
    assert Stream.log[: 3 * beside] == [line for i in range(beside) for line in (f"side {i} waits for main", f"on side {i}", "back")]
    assert Stream.log[3 * beside :] == [f"main waits for side {i}" for i in range(beside)]


def test_branches_that_cannot_be_captured_are_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tried: list[bool] = []

    def graph(*_: Any, **__: Any) -> str:
        tried.append(len(_) > 7)
        if tried[-1]:
            raise RuntimeError("operation not permitted when stream is capturing")
        return "a graph"

    monkeypatch.setattr(program, "Graph", graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    ops = TritonOps()
    made, _, _ = toy(ops)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "another place")
    pool, held = None, Captures()
    held.memory = "a place"
    assert [made._graph((rows, 8, False), pool, held) for rows in (1, 2, 128)] == ["a graph"] * 3  # type: ignore[arg-type]
    assert tried == [True, False, False, False] and "without branches" in caplog.text and held.memory == "another place"


def test_which_steps_share_a_graph() -> None:
    def key(count: int, before: int) -> tuple[int, int] | None:
        pages = -(-(before + 1) // PAGE)
        return graph_key(step_of([([1], before, list(range(i * pages, (i + 1) * pages))) for i in range(count)]))

    assert key(1, 0) == key(1, 255) == (1, 8) and key(3, 256) == (4, 16) and key(200, 0) == (256, 8) and key(300, 0) is None
    assert graph_key(step_of([([1, 2], 0, [0])])) is None
    only = step_of([([1], 0, [0]), ([2], 0, [1])])
    only.select = only.select[:1]
    assert graph_key(only) is None


def test_a_graph_is_made_when_it_is_worth_it_and_there_is_room(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    handles = iter(range(9))
    monkeypatch.setattr(graphs.torch.cuda, "graph_pool_handle", lambda: next(handles))
    held, made = Captures(), []

    def make(memory: Any) -> Any:
        made.append(memory)
        if len(made) == 1:
            raise torch.cuda.OutOfMemoryError("no room")
        return f"graph in {memory}"

    assert held.graph((8, 8, False), make) is None and not made
    assert held.graph((8, 8, False), make) is None and made == [0] and "8 users" in caplog.text
    assert held.graph((8, 8, False), make) is None and made == [0]  # not tried again
    held.graph((4, 8, False), make)
    assert held.graph((4, 8, False), make) == "graph in 1"          # torch gives a place up with its last graph: this is a new one
    held.graph((4, 8, True), make)
    assert held.graph((4, 8, True), make) == "graph in 1" and held.graph((4, 8, False), make) == "graph in 1" and len(made) == 3
