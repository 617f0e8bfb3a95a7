"""Root mean square norm (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * gain."""

from __future__ import annotations

from dataclasses import dataclass

from ..kernels.op import Value
from .tensors import Tensors


@dataclass(frozen=True)
class RMSNorm:
    """`offset` is added to the stored gain: Gemma stores gains as their distance from 1."""

    eps: float
    offset: float = 0.0

    def __call__(self, t: Tensors, x: Value, name: str, width: int, groups: int = 1) -> Value:
        """x [rows, groups * width], each group normed by itself."""
        return t.ops.rms_norm(x, t.vector(f"{name}.weight", width), self.eps, self.offset, groups)
