"""awq: factors for input channels and clipped ranges that keep the outputs, weights only.

What it is: channels that matter (large inputs) are multiplied by a factor, so that their weights are rounded finer, and what computes them is divided by
it; then each group's range is clipped where that makes its outputs better. Where the paper searches one exponent of the mean |x|, the factors are
found channel by channel (`_factors.py`), and judged by the error of the outputs over all calibration text, which the Gram matrix of the inputs gives.
When to choose it: 4 bits and below with scales per group; before rtn. Before gptq it gained nothing on the one model measured.
Limits: moves only what a norm, the value projection or the up projection can take; other inputs stay. Rounders that look at inputs (rtn too, unless it is
told not to) search ranges themselves, and what was clipped before costs them accuracy: nothing is clipped for those.
Options: clip (yes) searches ranges.
Source: arXiv 2306.00978.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...calibration import Block, Statistics
from ...calibration.blocks import Weights
from ...models import Decoder
from ...qtensor import quantize
from ...schemes import Scheme, TensorSpec
from ..method import Needs
from ._factors import Problem
from ._groups import Seen, look, spread

TOWARDS = (1.0, 0.75, 1.25, 0.5)     # powers of the optimum of the model
EXPONENTS = (0.5,)                   # of the mean |x|, as in the paper
RANGES = (0.95, 0.9, 0.85, 0.8, 0.7)
CLIPPED = 4                          # bits up to which clipping is searched


@dataclass(frozen=True)
class Awq:
    clip: bool = True

    def prepare(self, model: Decoder, weights: Weights) -> None:
        """Nothing concerns the whole model."""

    def apply(self, block: Block, schemes: Mapping[str, Scheme], needs: Needs) -> None:
        seen = spread(block, schemes, look(block, schemes), _choose, needs)
        if self.clip and needs == "nothing":
            self._clip(block, schemes, seen)

    def _clip(self, block: Block, schemes: Mapping[str, Scheme], seen: list[Seen]) -> None:
        grams = {name: one.statistics.gram for one in seen for name in one.names if name in schemes and _clips(schemes[name].weight)}
        found = block.map(lambda name: clipped(block.tensors[name], schemes[name].weight, grams[name]), grams)  # type: ignore[arg-type]
        block.tensors.update(zip(grams, found, strict=True))


def _choose(problem: Problem, statistics: Statistics) -> np.ndarray:
    """Of the optimum of the model and the paper's family, what really does best."""
    optimum = problem.optimum()
    mean = np.bincount(problem.index, statistics.mean_abs, problem.channels) / np.maximum(np.bincount(problem.index, minlength=problem.channels), 1)
    mean = np.maximum(mean, 1e-4 * max(float(mean.max()), 1e-20))
    family = [mean**power / np.exp(np.log(mean**power).mean()) for power in EXPONENTS]
    return problem.best([np.ones(problem.channels), *(optimum**power for power in TOWARDS), *family])


def _clips(spec: TensorSpec) -> bool:
    return spec.granularity == "group" and spec.bits <= CLIPPED


def clipped(weight: np.ndarray, spec: TensorSpec, gram: np.ndarray) -> np.ndarray:
    """`weight` [n, k] with the values of each group limited where the error of that group's outputs, d H d^T, gets less by it."""
    k, group = weight.shape[1], spec.size
    blocks = [gram[a : a + group, a : a + group] for a in range(0, k, group)]
    limit = np.maximum.reduceat(np.abs(weight), np.arange(0, k, group), axis=1)

    def errors(values: np.ndarray) -> np.ndarray:
        difference = weight - quantize(values, spec).dequantize()
        parts = [difference[:, a : a + group] for a in range(0, k, group)]
        return np.stack([np.einsum("nk,nk->n", part @ block, part) for part, block in zip(parts, blocks, strict=True)], axis=1)

    least, best = errors(weight), limit
    for part in RANGES:
        bound = np.repeat(limit * np.float32(part), group, axis=1)[:, :k]
        found = errors(np.clip(weight, -bound, bound))
        better = found < least
        least, best = np.where(better, found, least), np.where(better, limit * np.float32(part), best)
    bound = np.repeat(best, group, axis=1)[:, :k]
    return np.clip(weight, -bound, bound)


TRANSFORM = Awq
