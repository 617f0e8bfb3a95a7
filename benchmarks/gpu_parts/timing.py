"""How long a call takes on the GPU, for several candidates in turn.

A candidate is a list of calls that do the same on copies of their data. The copies together are larger than the L2 cache several times over, and
all are gone through before the first comes again, so weights come from memory as in a forward. The list is captured in a CUDA graph, so that no
candidate pays for its Python. In each round every candidate runs once, in random order; ratios are between numbers of one round.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Call = Callable[[], Any]
BEYOND_L2 = 5            # times its size
GRAPH_SECONDS = 4e-4     # of a replay, at least
MOST_CALLS = 256         # of a graph
ROUNDS = 15


def copies_for(nbytes: int) -> int:
    """Copies of data of this size so that none is left in the cache when its turn comes again."""
    if not torch.cuda.is_available():
        return 1
    l2 = int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)) or 64 << 20
    return max(2, min(64, -(-BEYOND_L2 * l2 // max(nbytes, 1))))


class Candidate:
    """Calls that are run together. `run()` gives seconds per call."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls, self.captured = list(calls), False
        if not torch.cuda.is_available():
            self._go: Call = self._all
            return
        for call in self.calls[:2]:  # compiles, allocates, picks its algorithm
            call()
        torch.cuda.synchronize()
        self._go = self._capture() or self._all
        more = round(GRAPH_SECONDS / max(self._timed(), 1e-6))
        if self.captured and (more := min(more, MOST_CALLS // len(self.calls))) > 1:
            self.calls *= more
            self._go = self._capture() or self._all

    def _all(self) -> None:
        for call in self.calls:
            call()

    def _capture(self) -> Call | None:
        """A replay of a graph of all calls; None for what cannot be captured."""
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        collecting = gc.isenabled()
        gc.disable()  # a tensor that is given back to the GPU while capturing would end the capture
        try:
            with torch.cuda.stream(side):  # torch.cuda.graph would empty the allocator each time
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._all()
                finally:
                    graph.capture_end()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        finally:
            if collecting:
                gc.enable()
        self.captured = True
        graph.replay()
        torch.cuda.synchronize()
        return graph.replay

    def _timed(self) -> float:
        """Seconds of all calls. They run twice and the second time counts: the first keeps the GPU busy while the second is on its way to it."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._go()
        begin.record()
        self._go()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def run(self) -> float:
        if torch.cuda.is_available():
            return self._timed() / len(self.calls)
        began = time.perf_counter()
        self._go()
        return (time.perf_counter() - began) / len(self.calls)


def in_turn(candidates: Mapping[str, Candidate], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds per call of each candidate in each round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name in random.sample(list(candidates), len(candidates)):
            seconds = candidates[name].run()
            if turn or rounds == 0:
                times[name].append(seconds)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(ours: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    """How many times faster we are: peer's seconds over ours, round by round."""
    return spread([b / a for a, b in zip(ours, peer, strict=True)])
