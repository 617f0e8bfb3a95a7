"""smoothquant: factors for input channels that share the difficulty between inputs and weights.

What it is: channels whose inputs are large are divided, so that a token's scale serves its other channels, and the weights that read them are multiplied. Where
the paper takes max|x|^a / max|w|^(1 - a) with one a, the factors are found channel by channel (`_factors.py`), and judged by the error of the outputs
that rounded weights and rounded inputs make together.
When to choose it: schemes that round inputs too: W8A8, W4A8.
Limits: moves only what a norm, the value projection or the up projection can take; other inputs stay.
Source: arXiv 2211.10438.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...calibration import Block, Statistics
from ...calibration.blocks import Weights
from ...errors import UsageError
from ...models import Decoder
from ...schemes import Scheme
from ..method import Needs
from ._factors import Problem
from ._groups import look, spread

TOWARDS = (1.0, 0.75, 0.5)
ALPHAS = (0.5, 0.8)


@dataclass(frozen=True)
class SmoothQuant:
    def prepare(self, model: Decoder, weights: Weights) -> None:
        """Nothing concerns the whole model."""

    def apply(self, block: Block, schemes: Mapping[str, Scheme], needs: Needs) -> None:
        if not any(scheme.activation.quantized for scheme in schemes.values()):
            raise UsageError("inputs are not rounded in this scheme", where="--transform smoothquant", remedy="name a scheme such as W8A8, or --transform awq")
        spread(block, schemes, look(block, schemes, inputs=True), _choose, needs)


def _choose(problem: Problem, statistics: Statistics) -> np.ndarray:
    optimum = problem.optimum()
    large = np.zeros(problem.channels)
    np.maximum.at(large, problem.index, statistics.largest)
    heavy = np.zeros(problem.channels)
    np.maximum.at(heavy, problem.index, np.max([np.abs(weight).max(axis=0) for weight in problem.weights], axis=0))
    large, heavy = (np.maximum(values, 1e-4 * max(float(values.max()), 1e-20)) for values in (large, heavy))
    family = [large**alpha / heavy ** (1 - alpha) for alpha in ALPHAS]
    return problem.best([np.ones(problem.channels), *(optimum**power for power in TOWARDS), *(one / np.exp(np.log(one).mean()) for one in family)])


TRANSFORM = SmoothQuant
