"""The search for factors of input channels: which ones make the outputs of rounded weights, on rounded inputs, wrong the least.

With factors s the weights W s are rounded to Q, and with D = W s - Q the mean squared error of the outputs is trace(D s^-1 H s^-1 D^T), H = mean of x x^T: no
inputs are needed to know it for weights. For inputs rounded as well, a sample of them tells.

Where to look: the step of a group of weights follows its largest, so for groups g of columns and rows r about

    error ~ sum over g of (sum over r of max_i (|W_ri| s_i)^2) (sum over i of H_ii / s_i^2)     i in g

and for rounded inputs with a scale for each token t

    error ~ (mean over t of max_i (|x_ti| / s_i)^2) (sum over i of s_i^2 sum over r of W_ri^2).

Both are sums of products of powers, convex in log s: one optimum, found by iteration. How far to go towards it is asked of the real error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...kernels.reference import round_activations
from ...qtensor import quantize
from ...schemes import TensorSpec

ROWS = 384        # rows of each weight that are looked at, spread evenly
POWER = 3         # the largest of a group, smoothly: a mean of order 2^POWER
STEPS = 24        # of the iteration
LARGEST = 5.0     # |log| of a factor
TINY = 1e-12


@dataclass
class Problem:
    """weights  float32 [rows, k], specs of each, parts of the total that each one's error counts
    noise      float64 [k]: what a unit of squared error of each column's weights costs
    gram       float32 [k, k], where the errors of columns meet as they are; None: `noise` is all
    index      int [k]: which factor each column takes
    inputs     float32 [sample, k], their spec, and what an error at each counts [sample] (calibration/tokens.py; None: 1); None where inputs stay
    """

    weights: Sequence[np.ndarray]
    specs: Sequence[TensorSpec]
    parts: Sequence[float]
    noise: np.ndarray
    gram: np.ndarray | None
    index: np.ndarray
    inputs: np.ndarray | None = None
    activation: TensorSpec | None = None
    counts: np.ndarray | None = None

    def __post_init__(self) -> None:
        self._weigh: np.ndarray = np.sqrt(np.ones(1, np.float32) if self.counts is None else self.counts)[:, None]  # of the rows of inputs

    @property
    def channels(self) -> int:
        return int(self.index.max()) + 1

    def error(self, factors: np.ndarray) -> float:
        """Of the outputs, for factors [channels]: what rounded weights and what rounded inputs make of them, which have nothing to do with each other."""
        spread = factors[self.index].astype(np.float32)
        total = 0.0
        missed = None
        if self.inputs is not None and self.activation is not None:
            missed = self.inputs - round_activations(self.inputs / spread, self.activation).astype(np.float32) * spread
        for weight, spec, part in zip(self.weights, self.specs, self.parts, strict=True):
            back = quantize(weight * spread, spec).dequantize() / spread
            difference = weight - back
            if self.gram is None:
                wrong = float(np.einsum("nk,nk->k", difference, difference) @ self.noise)
            else:
                wrong = float(np.einsum("nk,nk->", difference @ self.gram, difference, dtype=np.float64))
            if missed is not None:
                outputs = missed @ back.T
                outputs *= self._weigh
                wrong += float(np.einsum("tn,tn->", outputs, outputs, dtype=np.float64)) / len(outputs)
            total += part * wrong
        return total

    def best(self, candidates: Iterable[np.ndarray]) -> np.ndarray:
        """The candidate with the least error; the first among equals."""
        found, least = None, np.inf
        for factors in candidates:
            wrong = self.error(factors)
            if found is None or wrong < least:
                found, least = factors, wrong
        assert found is not None
        return found

    def optimum(self) -> np.ndarray:
        """Factors [channels] that minimise the model of the error in the module's docstring."""
        size = np.sqrt(np.maximum(self.noise, 0))
        alive = size > 0
        logs = np.zeros(self.channels)
        if not alive.any():
            return np.exp(logs)
        count = np.maximum(np.bincount(self.index, minlength=self.channels), 1)
        for step in range(STEPS):
            spread = np.exp(logs)[self.index]
            up, down = self._slopes(spread.astype(np.float32), size)
            move = np.where(alive & (up > 0), np.log(np.maximum(down, TINY) / np.maximum(up, TINY)), 0.0)
            move = np.bincount(self.index, move, self.channels) / count
            logs += (0.3 if step < STEPS - 8 else 0.15) * 0.5 * np.clip(move, -4, 4)
        logs -= logs.mean()
        return np.exp(np.clip(logs, -LARGEST, LARGEST))

    def _slopes(self, spread: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the model of the error gains per unit of each log s, and what it loses: float64 [k], [k]."""
        k = len(spread)
        noise = (size / spread) ** 2
        up, down = np.zeros(k), np.zeros(k)
        for weight, spec, part in zip(self.weights, self.specs, self.parts, strict=True):
            group = spec.size if spec.granularity == "group" else k
            share, largest = _shares(weight * spread, group)
            starts = np.arange(0, k, group)
            flow, steps = np.add.reduceat(noise, starts), largest.sum(axis=0)
            coarse = part / (2.0 ** (spec.bits - 1) - 0.5) ** 2
            up += coarse * np.repeat(flow, group)[:k] * share
            down += coarse * np.repeat(steps, group)[:k] * noise
        if self.inputs is not None and self.activation is not None:
            energy = sum(part * np.square(weight, dtype=np.float64).sum(axis=0) for weight, part in zip(self.weights, self.parts, strict=True)) * spread**2
            group = self.activation.size if self.activation.granularity == "group" else k
            share, largest = _shares(self.inputs * self._weigh / spread, group)
            starts = np.arange(0, k, group)
            coarse = 1 / ((2.0 ** (self.activation.bits - 1) - 0.5) ** 2 * len(self.inputs))
            up += coarse * np.repeat(largest.sum(axis=0), group)[:k] * energy
            down += coarse * np.repeat(np.add.reduceat(energy, starts), group)[:k] * share
        return up, down


def _shares(values: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """For values [rows, k] in groups of columns: how much of the (smooth) largest square is each column's, summed over rows [k], and the squares
    [rows, groups], float64."""
    rows, k = values.shape
    pad = -k % group
    parts = np.abs(np.pad(values, ((0, 0), (0, pad))) if pad else values).reshape(rows, -1, group)
    top = np.maximum(parts.max(axis=2, keepdims=True), np.float32(1e-30))
    powers = parts / top
    for _ in range(POWER):
        powers *= powers
    total = np.maximum(powers.sum(axis=2, keepdims=True), np.float32(1e-30))
    squares = (top[..., 0].astype(np.float64) ** 2) * total[..., 0].astype(np.float64) ** (2.0 ** (1 - POWER))
    share = np.einsum("rgk,rg->gk", powers / total, squares.astype(np.float32)).reshape(-1)[:k].astype(np.float64)
    return share, squares


def remaining(gram: np.ndarray, damping: float = 0.01) -> np.ndarray:
    """What is left of the squared error of each column's weights, float64 [k], when columns are rounded in the order of their size and those that follow
    make good what they can (GPTQ): the part of each input that later ones do not explain."""
    order = np.argsort(np.diagonal(gram), kind="stable")
    matrix = gram[np.ix_(order, order)].astype(np.float64)
    matrix[np.diag_indices(len(matrix))] += damping * float(np.trace(matrix)) / len(matrix) + TINY
    left = np.empty(len(order))
    left[order] = np.diagonal(np.linalg.cholesky(matrix)) ** 2
    return np.where(np.diagonal(gram) > 0, left, 0.0)


def sample(weight: np.ndarray, rows: int = ROWS) -> np.ndarray:
    """At most `rows` rows of a weight, spread evenly."""
    return weight[:: max(1, -(-len(weight) // rows))]
