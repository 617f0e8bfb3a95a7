"""bias_correction: what rounding takes from or adds to each output in the mean goes into the bias.

What it is: for inputs of mean m, rounding the weight W to Q moves the outputs by (Q - W) m in the mean; the bias takes that back. Where inputs have a static
scale, so does what rounding and clipping does to them. Earlier layers are rounded and corrected already when a layer's inputs are looked at.
When to choose it: static inputs that are clipped, very few bits; models that have biases.
Limits: linears without a bias stay as they are (add=yes gives them one where the architecture knows them: llama, smollm3; queries, keys, values and the
attention's output of qwen3 and gemma3_text); the format written must hold the model's biases. Rounders that look at inputs leave little to correct.
Options: add (no) makes biases.
Source: Nagel et al., arXiv 1906.04721, section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...calibration import Block, Group
from ...calibration.blocks import Weights
from ...checkpoints import Checkpoint
from ...errors import UsageError
from ...models import Decoder
from ...schemes import Scheme
from ..biases import with_biases
from ..method import Needs

LARGEST_CODE = 127


@dataclass(frozen=True)
class BiasCorrection:
    """add   give biases to linears that have none"""

    add: bool = False

    def opened(self, checkpoint: Checkpoint) -> Checkpoint:
        return with_biases(checkpoint) if self.add else checkpoint

    def prepare(self, model: Decoder, weights: Weights) -> None:
        if not any(name.endswith("_proj.bias") for name in weights.found):
            raise UsageError("no linear of this model has a bias", where="--transform bias_correction", remedy="--set bias_correction.add=yes gives them one")

    def apply(self, block: Block, schemes: Mapping[str, Scheme], needs: Needs) -> None:
        """Nothing before the layer is rounded."""

    def correct(self, block: Block, group: Group, rounded: Mapping[str, np.ndarray], scales: Mapping[str, np.float32]) -> None:
        mean: np.ndarray | None = None
        missed: dict[np.float32, np.ndarray] = {}
        for matrix, bias in zip(group.weights, group.biases, strict=True):
            if bias is None or matrix.name not in rounded:
                continue
            mean = group.mean() if mean is None else mean
            values = rounded[matrix.name]
            shift = (matrix.values - values).astype(np.float64) @ mean
            if scale := scales.get(matrix.name):
                if scale not in missed:
                    missed[scale] = group.mean(partial(_missed, scale))
                shift += values.astype(np.float64) @ missed[scale]
            bias.values = block.tensors[bias.name] = (bias.values + shift).astype(np.float32)


def _missed(scale: np.float32, x: np.ndarray) -> np.ndarray:
    """What rounding with this scale takes from inputs."""
    left: np.ndarray = x - scale * np.clip(np.rint(x / scale), -LARGEST_CODE, LARGEST_CODE)
    return left


TRANSFORM = BiasCorrection
