"""Products of matrices while a model is looked at: pairs of bfloat16 with float32 sums, where this machine's kernels multiply those faster (csrc/products.h),
else float32 by NumPy's BLAS. What calibration learns from either is the same but for noise (docs/quantize.md)."""

from __future__ import annotations

from functools import cache

import numpy as np

from .. import _native
from ..machine import detect


@cache
def _pairs() -> str:
    """The instruction set whose pairs are used, or ""."""
    isa = detect(None).isa
    return isa if _native.has_products(isa) else ""


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x w^T, float32 [m, n], for x [m, k] and w [n, k]; on the calling thread where pairs are used."""
    isa = _pairs()
    if not isa:
        found: np.ndarray = x @ w.T
        return found
    y = np.empty((len(x), len(w)), np.float32)
    _native.product(np.ascontiguousarray(x, np.float32), np.ascontiguousarray(w, np.float32), y, isa)
    return y


def gram(x: np.ndarray, factors: np.ndarray | None) -> np.ndarray:
    """X^T X, float32 [k, k], symmetric, where X is x [m, k] with each row times its factor [m]."""
    isa = _pairs()
    if not isa:
        scaled = x if factors is None else x * factors[:, None]
        found: np.ndarray = scaled.T @ scaled  # NumPy calls syrk for this: half the work
        return found
    y = np.empty((x.shape[1], x.shape[1]), np.float32)
    _native.gram(np.ascontiguousarray(x, np.float32), None if factors is None else np.ascontiguousarray(factors, np.float32), y, isa)
    return y
