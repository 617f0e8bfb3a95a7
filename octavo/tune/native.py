"""The CPU kernels as a KernelBackend: timed with the team of threads over all weights of a kind, cold as a step finds them.

A probe is a small program: an embedding that yields inputs of the right width, then the linears of one kind, layer after layer. Before each pass
as many bytes are read as a step would read between two uses of a weight (other weights; at most twice the last cache), and the team is awake.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import _native, layouts
from ..cache import PAGE, KVPool, Step
from ..kernels.native import WHOLE_ROW, NativeOps, NativeProgram, NativeWeight
from ..kernels.reference import round_activations
from ..loading import LoadedModel, linear_facts, native_of
from ..machine import last_level_cache
from ..qtensor import quantize
from ..schemes import TensorSpec
from .kernels import Site

FLOAT = TensorSpec("fp32")
INPUTS = 64              # rows of the embedding that probes start with
COLUMNS = 256            # outputs compared with the reference, from either end
LONGEST_PASS = 0.004     # seconds; as many layers as this allows are in a probe. Short, so that some passes escape the other programs
PASSES = 5               # the fastest of so many is one measurement


class NativeKernels:
    """`index` are the kinds of linears of the model; `selected` those that only rows with logits reach."""

    same_bits = True
    importance: Sequence[int] = (1, 512, 16, 8, 4, 32, 2, 64, 128)

    def __init__(self, loaded: LoadedModel) -> None:
        self.ops, program = native_of(loaded)
        linears = program.linears()
        sites = [Site.of(linear_facts(linear)) for linear in linears]
        self.buckets: Sequence[int] = program.buckets
        self.program, self.index = program, {site: i for i, site in reversed(list(enumerate(sites)))}
        self.selected = {site for site in self.index if all(linear["logits"] for linear, one in zip(linears, sites, strict=True) if one == site)}
        self.bytes = {site: sum(linear["bytes"] for linear, one in zip(linears, sites, strict=True) if one == site) for site in self.index}
        self.weights: dict[Site, list[NativeWeight]] = {site: [] for site in self.index}
        for weight in loaded.bound.weights.values():
            if isinstance(weight, NativeWeight) and (site := _site(weight)) in self.weights:
                self.weights[site].append(weight)
        self._sweep = np.zeros(min(2 * last_level_cache(), sum(self.bytes.values())), np.uint8)
        self._probe: tuple[tuple[Site, int], Probe] | None = None
        self._wake = Probe(self.ops, self.weights[min(self.bytes, key=lambda site: self.bytes[site])][:1])

    def kernels(self, site: Site, rows: int) -> Sequence[str]:
        default = self.program.chosen(self.index[site], _native.row_buckets().index(rows))
        weight = self.weights[site][0]
        names = [name for name in _native.linear_kernels(self.ops.isa) if _native.linear_supported(weight.native, self.ops.isa, weight.group, rows, name)]
        return [default, *(name for name in names if name != default)]

    def outputs(self, site: Site, rows: int, kernel: str) -> np.ndarray:
        weight = self.weights[site][0]
        found = np.empty((rows, weight.n), np.float32)
        _native.linear_once(weight.native, _inputs(rows, weight.k), found, self.ops.isa, weight.group, 1, kernel)
        return found

    def reference(self, site: Site, rows: int) -> tuple[np.ndarray, np.ndarray]:
        weight = self.weights[site][0]
        unit = weight.packed.meta.unit
        last = (weight.n - 1) // unit * unit
        ends = [slice(0, min(COLUMNS, weight.n)), slice(max(0, last - COLUMNS), weight.n)]
        columns = np.concatenate([np.arange(part.start, part.stop) for part in ends])
        panels = replace(weight.packed, order=None, factors=None, rotation=0)  # `outputs` takes inputs as the panels meet them
        values = np.concatenate([np.asarray(layouts.unpack(panels, part).dequantize(), np.float64) for part in ends])
        whole = weight.group >= WHOLE_ROW
        spec = FLOAT if not weight.group else TensorSpec("int8", "token" if whole else "group", 0 if whole else weight.group, dynamic=True)
        return columns, round_activations(_inputs(rows, weight.k), spec).astype(np.float64) @ values.T

    def seconds(self, site: Site, rows: int, kernel: str) -> float:
        probe = self._ready(site, rows)
        probe.choose(rows, kernel)
        cold = self._sweep[: max(0, sum(self.bytes.values()) - probe.nbytes)]
        passes = []
        for _ in range(PASSES):
            cold[::64].max(initial=0)
            self._wake.run(1)
            passes.append(probe.run(rows))
        return min(passes)

    def release(self) -> None:
        self._probe = None

    def _ready(self, site: Site, rows: int) -> Probe:
        """A probe of as many layers as fit into LONGEST_PASS, at least two where there are two."""
        if self._probe is None or self._probe[0] != (site, rows):
            weights = self.weights[site]
            first = Probe(self.ops, weights[:1])
            first.run(rows)
            each = min(first.run(rows) for _ in range(2))
            count = max(min(2, len(weights)), min(len(weights), int(LONGEST_PASS / each)))
            self._probe = (site, rows), Probe(self.ops, weights[:count])
        return self._probe[1]


class Probe:
    """A program of the linears `weights`, all of one kind, each on the same inputs [rows, k]."""

    def __init__(self, ops: NativeOps, weights: Sequence[NativeWeight]) -> None:
        self.weights, self.nbytes = list(weights), sum(weight.nbytes for weight in weights)
        inputs = ops.prepare(quantize(_inputs(INPUTS, weights[0].k), FLOAT), FLOAT)

        def describe(now: Any) -> Any:
            x = now.embed(inputs)
            for weight in self.weights:
                (y,) = now.linear(x, [weight])
            return now.select(y)

        self.program: NativeProgram = ops.capture(describe)
        self.pool = KVPool(1, [1], [8], FLOAT)
        self.steps: dict[int, Step] = {}

    def choose(self, rows: int, kernel: str) -> None:
        bucket = next((i for i, most in enumerate(_native.row_buckets()) if rows <= most), len(_native.row_buckets()) - 1)
        for index in range(len(self.weights)):
            self.program.choose(index, bucket, kernel)

    def run(self, rows: int) -> float:
        """Seconds of one pass."""
        step = self.steps.get(rows)
        if step is None:
            step = self.steps[rows] = one_sequence(rows)
            self.pool = KVPool(-(-rows // PAGE), [1], [8], FLOAT)
        began = time.perf_counter()
        self.program.run(step, self.pool)
        return time.perf_counter() - began


def one_sequence(rows: int, before: int = 0) -> Step:
    """A sequence of `before + rows` tokens of which the last `rows` are new; the last one's row is wanted."""
    positions = np.arange(before, before + rows, dtype=np.int32)
    ends = np.array([0, rows], np.int32)
    pages = np.arange(-(-(before + rows) // PAGE), dtype=np.int32)[None]
    return Step(tokens=positions % INPUTS, positions=positions, slots=positions, starts=ends, lengths=np.array([before + rows], np.int32), tables=pages,
                select=np.array([rows - 1], np.int32))


def _site(weight: NativeWeight) -> Site:
    meta = weight.packed.meta
    return Site.of({"n": meta.n, "k": meta.k, "table": bool(meta.table), "group": meta.group, "zeros": meta.has_zeros, "activation_group": weight.group,
                    "weights": meta.store, "scale_type": meta.scale_type})


def _inputs(rows: int, k: int) -> np.ndarray:
    """float32 [rows, k]: a bell curve with a few large values, as activations have."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, k), np.float32)
    x[rng.random((rows, k)) < 0.002] *= 16
    return x
