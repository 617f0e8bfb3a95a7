"""qep: weights that make good what rounding earlier layers has done to their inputs, before they are rounded themselves.

What it is: the unrounded model goes along. With x the inputs after all earlier rounding and d what the outputs lack of the unrounded model's, W becomes
W + d^T x (x^T x + damping)^-1: the linear that comes closest to the unrounded outputs from the inputs it will really get. Where outputs are added to the
residual stream, d is what the stream lacks then, so that o_proj and down_proj also make good what earlier layers left in it.
When to choose it: below 5 bits (measured with gptq), in models whose layers add their outputs to the residual stream as they are (Llama, Qwen, Mistral; not
Gemma: no gain at 4 bits and a loss at 3 there). Some ten sequences of text or more. docs/transforms.md has what was measured.
Limits: about 1.7 times GPTQ's time, and memory for the unrounded model's rows. Errors in reports are those of rounding, against the weights it gives.
Options: part (all): "stream" leaves alone what is not added to the residual stream; strength (1) scales the correction; damping (0.05) of the mean of the
diagonal of x^T x.
Source: quantization error propagation, arXiv 2504.09629; asymmetric calibration, arXiv 2504.02692 (GPTAQ). Ours: the residual stream's part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from ...calibration import Block, Group
from ...calibration.blocks import Weights
from ...calibration.extra import check_extra
from ...errors import ModelError, UsageError
from ...models import Decoder
from ...schemes import Scheme
from ..method import Needs

PARTS = ("stream", "all")
PIECE = 512  # rows of weights that one thread works on


@dataclass(frozen=True)
class Qep:
    part: str = "all"
    strength: float = 1.0
    damping: float = 0.05

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise UsageError(f"there is no part {self.part!r}", where="--set qep.part", remedy=f"known: {', '.join(PARTS)}")
        if not 0 < self.strength <= 1:
            raise UsageError(f"a strength of {self.strength:g}", where="--set qep.strength", remedy="above 0, up to 1")
        if not self.damping > 0:
            raise UsageError(f"a damping of {self.damping:g}", where="--set qep.damping", remedy="above 0, such as 0.05")

    def prepare(self, model: Decoder, weights: Weights) -> None:
        """Nothing before the first layer."""

    def apply(self, block: Block, schemes: Mapping[str, Scheme], needs: Needs) -> None:
        """Nothing before the layer is rounded."""

    def retarget(self, block: Block, group: Group, names: Collection[str]) -> None:
        if not any(matrix.name in names for matrix in group.weights) or (self.part == "stream" and not group.into_stream):
            return
        missed = group.missed()
        gram = group.statistics(moments=False).gram
        assert missed is not None and gram is not None
        solve = _solver(gram, self.damping)
        for matrix, lacking in zip(group.weights, missed, strict=True):
            if matrix.name not in names:
                continue
            pieces = [slice(a, a + PIECE) for a in range(0, matrix.n, PIECE)]
            moves = block.map(lambda rows, lacking=lacking: solve(lacking[rows]), pieces)  # type: ignore[misc]
            matrix.values = matrix.values + np.float32(self.strength) * np.concatenate(moves)


def _solver(gram: np.ndarray, damping: float) -> Callable[[np.ndarray], np.ndarray]:
    """lacking [rows, k] -> lacking (gram + damping of its mean diagonal)^-1, float32; more damping where that is not positive definite in float32."""
    check_extra()
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    mean = float(np.trace(gram, dtype=np.float64)) / len(gram)
    if not np.isfinite(mean):
        raise ModelError("the inputs of a linear overflow float32 on the calibration text", remedy="quantize this model without --transform qep")
    if mean <= 0:  # no input was ever anything but 0
        return np.zeros_like
    while True:
        damped = gram.copy()
        damped[np.diag_indices(len(gram))] += np.float32(damping * mean)
        try:
            factor = cho_factor(damped, lower=True, overwrite_a=True)
            break
        except LinAlgError:
            damping *= 10

    def solve(lacking: np.ndarray) -> np.ndarray:
        found: np.ndarray = cho_solve(factor, lacking.T).T
        return found

    return solve


TRANSFORM = Qep
