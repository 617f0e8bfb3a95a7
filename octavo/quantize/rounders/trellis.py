"""trellis: 2, 3 or 4 bits by trellis-coded quantization.

What it is: the inputs are rotated (Hadamard transforms in blocks of 64), which makes weights Gaussian and the errors of inputs alike; then column after
  column, 64 output rows at a time, become the path through a trellis that is nearest to them (Viterbi's algorithm), and what a column
  loses is made good in the columns after it, as GPTQ does. At the end each row's scale is the best one for its codes.
When to choose it: 2 and 3 bits: schemes Wtcq2, Wtcq3, Wtcq4, without groups; --to octavo. docs/two-bits.md has what they lose.
Limits: minutes where gptq takes seconds (2 to 3 us a weight and core); one more operation a linear, the rotation, when the model runs; no other engine
  reads it.
Source: QTIP, arXiv 2406.11235 (trellis and computed values); QuIP#, arXiv 2402.04396 (incoherence by Hadamard transforms, LDLQ); GPTQ, arXiv 2210.17323.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ... import _native, formats
from ...calibration import Statistics
from ...errors import SchemeError
from ...machine import detect
from ...qtensor import NonFiniteError, QTensor, rotate, rotation_of, round_scales
from ...schemes import TensorSpec
from ..method import Needs

COLUMNS = 64  # rounded in native code between two matrix products
WIDEN = 1.03  # a little more than the rows' standard deviation lets the trellis reach their tails


@dataclass(frozen=True)
class Trellis:
    """damping   part of the Gram matrix's mean diagonal that is added to it"""

    damping: float = 0.01
    needs: ClassVar[Needs] = "gram"

    def round(self, weight: np.ndarray, spec: TensorSpec, statistics: Statistics | None) -> QTensor:
        return self.round_group([weight], [spec], statistics, detect(None).cores)[0]

    def round_group(self, weights: Sequence[np.ndarray], specs: Sequence[TensorSpec], statistics: Statistics | None, threads: int) -> list[QTensor]:
        for spec in specs:
            if formats.get(spec.format).kind != "trellis":
                raise SchemeError(f"rounds to tcq2, tcq3 or tcq4, not to {spec.format}", where="--method trellis", remedy="--scheme Wtcq2")
        assert statistics is not None and statistics.gram is not None
        return round_weights(weights, specs, statistics.gram, self.damping, threads=threads)


def round_weights(weights: Sequence[np.ndarray], specs: Sequence[TensorSpec], gram: np.ndarray, damping: float = 0.01, *, threads: int = 1,
                  isa: str = "") -> list[QTensor]:
    """Each weight, float32 [n, k], as trellis codes that keep the outputs for inputs of the Gram matrix `gram` [k, k] (X^T X / rows)."""
    block = rotation_of(len(gram))
    seen = rotate(rotate(gram.astype(np.float64), block).T, block)
    upper = _upper(seen, damping)
    return [_round(weight, spec, seen, upper, block, threads, isa) for weight, spec in zip(weights, specs, strict=True)]


def _round(weight: np.ndarray, spec: TensorSpec, seen: np.ndarray, upper: np.ndarray, block: int, threads: int, isa: str) -> QTensor:
    if not np.isfinite(weight).all():
        raise NonFiniteError("holds NaN or infinity", remedy="the weights are damaged: fetch them again")
    number = formats.get(spec.format)
    rotated = np.ascontiguousarray(rotate(weight, block), np.float32)
    values = number.decode(np.arange(1 << number.code_bits, dtype=np.uint16))
    scales = rotated.std(axis=1, dtype=np.float64) * (WIDEN / float(values.std()))
    states = _paths(rotated, upper, scales.astype(np.float32), spec.bits, threads, isa)
    # of all scales, given the codes, the one with the least squared error of the outputs
    codes = values[states].astype(np.float64)
    met = codes @ seen
    power = np.einsum("nk,nk->n", met, codes)
    scales = np.where(scales > 0, np.einsum("nk,nk->n", met, rotated) / np.where(power > 0, power, 1), 0.0)
    kept = round_scales(scales.astype(np.float32), spec.scale_format)
    if not np.isfinite(kept).all() or (np.abs(kept - scales) > np.abs(scales) * 2.0**-10).any():  # beyond float16's normal numbers
        spec, kept = replace(spec, scale_format="fp32"), scales.astype(np.float32)
    return QTensor(states, kept[:, None], spec, weight.shape, rotation=block)


def _upper(gram: np.ndarray, damping: float) -> np.ndarray:
    """float32 [k, k]: the upper Cholesky factor of the inverse of the damped Gram matrix. Damping grows until there is one."""
    mean = float(np.diagonal(gram).mean())
    for _ in range(12):
        damped = gram + np.eye(len(gram)) * (damping * mean if mean > 0 else 1.0)
        try:
            factor: np.ndarray = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
            if np.isfinite(factor).all():
                return np.ascontiguousarray(factor)
        except np.linalg.LinAlgError:
            pass
        damping *= 4
    raise SchemeError("the inputs' Gram matrix cannot be factored", remedy="other calibration text, or a larger --set trellis.damping")


def _paths(weight: np.ndarray, upper: np.ndarray, scales: np.ndarray, bits: int, threads: int, isa: str) -> np.ndarray:
    """uint16 [n, k]: the states, column after column."""
    n, k = weight.shape
    left = weight.copy()
    states = np.zeros((n, k), np.uint16)
    for start in range(0, k, COLUMNS):
        end = min(start + COLUMNS, k)
        errors = np.zeros((n, end - start), np.float32)
        _native.round_trellis(bits, left[:, start:end], np.ascontiguousarray(upper[start:end, start:end]), scales, states[:, start:end], errors, threads, isa)
        if end < k:
            left[:, end:] -= errors @ upper[start:end, end:]
    return states


ROUNDER = Trellis
