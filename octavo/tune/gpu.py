"""The GPU's kernels as ModelKernels: the usual ones, other tiles, torch's libraries, timed by events around replayed graphs of a kind's weights.

A pass goes over as many layers' weights as LONGEST_PASS allows; where these would stay in the L2 cache from pass to pass, copies of them are taken along, as a
step reads all other weights between two uses of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..kernels.reference import round_activations
from ..kernels.triton.choices import ROWS, USUAL, Product, Way, names, parsed
from ..kernels.triton.program import TritonProgram
from ..kernels.triton.tiles import gpu
from ..kernels.triton.weights import GpuWeight, family_of, unpacked
from ..loading import LoadedModel, choosable, linear_facts
from .kernels import Site

DISTINCT = 256        # rows of inputs; more rows are these again
COLUMNS = 128         # outputs compared with the reference, from either end
LONGEST_PASS = 0.002  # seconds
REPLAYS = 3           # of a pass, between two events
COLD = 3              # times the L2 cache: what a pass reads at least, where few rows make reading all there is
FEW_ROWS = 128
MOST_COPIES = 64

Timer = Callable[[tuple[Site, int, str], Callable[[], None]], float]


@dataclass(frozen=True)
class Pass:
    """What is timed: products of the same rounded inputs and these weights."""

    weights: list[GpuWeight]
    given: Any
    residual: torch.Tensor | None


class GpuKernels:
    """`index` are the kinds of products of the model; timer(what, work): seconds of the work; None: by events, or by the clock where Triton is interpreted."""

    same_bits = False
    importance: Sequence[int] = (16, 512, 128, 4096, 64, 32)

    def __init__(self, loaded: LoadedModel, timer: Timer | None = None) -> None:
        program = choosable(loaded)
        assert isinstance(program, TritonProgram)
        self.program = program
        self.buckets: Sequence[int] = ROWS
        self.index: dict[Site, int] = {}
        self.bytes: dict[Site, int] = {}
        self.products: dict[Site, list[Product]] = {}
        for place, (linear, product) in enumerate(zip(program.linears(), program.products(), strict=True)):
            site = Site.of(linear_facts(linear))
            self.index.setdefault(site, place)
            self.bytes[site] = self.bytes.get(site, 0) + linear["bytes"]
            self.products.setdefault(site, []).append(product)
        self.selected = {site for site, some in self.products.items() if all(one.logits for one in some)}
        self.device = next(iter(self.products.values()))[0].weight.codes.device
        self._timer = timer or (Replays(self.device) if self.device.type == "cuda" else _by_clock)
        self._passes: dict[tuple[Site, int], Pass] = {}
        self._known: dict[tuple[Site, int], tuple[np.ndarray, np.ndarray]] = {}

    def kernels(self, site: Site, rows: int) -> Sequence[str]:
        default = self.program.chosen(self.index[site], ROWS.index(rows))
        return [default, *(name for name in names(self._first(site), rows, gpu(self.device)) if name != default)]

    def outputs(self, site: Site, rows: int, kernel: str) -> np.ndarray:
        weight = self._first(site)
        y = self._multiply(weight, self._given(weight, rows), kernel, bool(site["wide"]))
        return y.to(torch.float32).cpu().numpy()

    def reference(self, site: Site, rows: int) -> tuple[np.ndarray, np.ndarray]:
        if (site, rows) not in self._known:
            weight = self._first(site)
            columns = np.unique(np.concatenate([np.arange(min(COLUMNS, weight.n)), np.arange(max(0, weight.n - COLUMNS), weight.n)]))
            at = torch.from_numpy(columns).to(self.device)
            few = replace(weight, n=len(columns), codes=weight.codes[at], scales=None if weight.scales is None else weight.scales[:, at],
                          offsets=None if weight.offsets is None else weight.offsets[:, at])
            values = unpacked(few).cpu().numpy().astype(np.float64)
            x = self._inputs(min(rows, DISTINCT), weight.k).to(torch.float32).cpu().numpy()
            wanted = round_activations(x, weight.activation, weight.input_scale).astype(np.float64) @ values.T
            self._known[site, rows] = columns, np.resize(wanted, (rows, len(columns)))
        return self._known[site, rows]

    def seconds(self, site: Site, rows: int, kernel: str) -> float:
        return self._timed(site, rows, kernel, self._pass(site, rows))

    def release(self) -> None:
        self._passes.clear()
        self._known.clear()
        if isinstance(self._timer, Replays):
            self._timer.release()

    def _first(self, site: Site) -> GpuWeight:
        return self.products[site][0].weight

    def _inputs(self, rows: int, k: int) -> torch.Tensor:
        """bfloat16 [rows, k]: a bell curve with a few large values, as activations have; the first rows are the same for any number of them."""
        rng = np.random.default_rng(k)
        x = rng.standard_normal((DISTINCT, k), np.float32)
        x[rng.random((DISTINCT, k)) < 0.002] *= 16
        some = torch.from_numpy(x[:rows]).to(self.device).to(torch.bfloat16)
        return some if rows <= DISTINCT else some.repeat(-(-rows // DISTINCT), 1)[:rows]

    def _given(self, weight: GpuWeight, rows: int) -> Any:
        x = self._inputs(rows, weight.k)
        return family_of(weight).inputs(x.to(torch.float32) if weight.kind == "fp32" else x, weight)

    def _multiply(self, weight: GpuWeight, given: Any, kernel: str, wide: bool, residual: torch.Tensor | None = None) -> torch.Tensor:
        by = family_of(weight) if kernel == USUAL else Way(kernel, parsed(kernel))
        found: torch.Tensor = by.multiply(given, weight, None, residual, narrow=not wide and self.program.inner == torch.bfloat16)
        return found

    def _timed(self, site: Site, rows: int, kernel: str, one: Pass) -> float:
        def work() -> None:
            for weight in one.weights:
                self._multiply(weight, one.given, kernel, bool(site["wide"]), one.residual)

        return self._timer((site, rows, kernel), work) / len(one.weights)

    def _pass(self, site: Site, rows: int) -> Pass:
        """At least two weights where there are two, as many as LONGEST_PASS allows, and copies where few rows would find them in a cache."""
        if (site, rows) not in self._passes:
            weights = list({id(product.weight): product.weight for product in self.products[site]}.values())
            residual = torch.zeros((rows, weights[0].n), device=self.device) if site["wide"] and site not in self.selected else None
            given = self._given(weights[0], rows)
            each = self._timed(site, rows, USUAL, Pass(weights[:1], given, residual))
            if isinstance(self._timer, Replays):
                self._timer.release()
            some = weights[: max(2, int(LONGEST_PASS / max(each, 1e-6)))]
            if rows <= FEW_ROWS and self.device.type == "cuda":
                cold = COLD * torch.cuda.get_device_properties(self.device).L2_cache_size
                missing = -(-cold // some[0].nbytes) - len(some)
                some += [replace(weight, codes=weight.codes.clone()) for weight in (some * MOST_COPIES)[: max(0, min(missing, MOST_COPIES))]]
            self._passes[site, rows] = Pass(some, given, residual)
        return self._passes[site, rows]


class Replays:
    """Seconds of work on a GPU: captured as a graph when it is first timed, replayed between two events; so the host has no part in it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Callable[[], None]]] = {}  # the work holds what the graph reads

    def __call__(self, what: Any, work: Callable[[], None]) -> float:
        if what not in self.graphs:
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                work()
            torch.cuda.synchronize(self.device)
            made = torch.cuda.CUDAGraph()
            with torch.cuda.graph(made, capture_error_mode="thread_local"):
                work()
            self.graphs[what] = made, work
        graph = self.graphs[what][0]
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()  # clocks up, code there
        begin.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / REPLAYS

    def release(self) -> None:
        self.graphs.clear()


def _by_clock(what: Any, work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
