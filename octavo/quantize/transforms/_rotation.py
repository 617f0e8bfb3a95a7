"""Orthogonal matrices that spread a vector evenly over its channels, for any width, by a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rotation:
    """x -> x R, R = diag(signs) (C kron H): H the Hadamard matrix of the largest power of two that divides the width, C of the odd rest the cosine-sine
    (Hartley) matrix, whose entries are nearly as even: at most sqrt(2 / m). Both are symmetric and orthogonal.

    signs   float32 [width], -1 or 1
    """

    signs: np.ndarray

    @property
    def width(self) -> int:
        return len(self.signs)

    def columns(self, x: np.ndarray) -> np.ndarray:
        """x [n, width] R: what reads rotated inputs, and what holds rows of them. float32."""
        return self._mix(x.astype(np.float64) * self.signs).astype(np.float32)

    def rows(self, x: np.ndarray) -> np.ndarray:
        """R^T x [width, k], or [width]: what writes rotated outputs. float32."""
        flat = x.astype(np.float64).reshape(self.width, -1).T
        return np.ascontiguousarray(self._mix(flat * self.signs).T.astype(np.float32)).reshape(x.shape)

    def _mix(self, x: np.ndarray) -> np.ndarray:
        """x (C kron H)."""
        even = self.width & -self.width
        odd = self.width // even
        parts = x.reshape(len(x), odd, even)
        half = 1
        while half < even:
            pairs = parts.reshape(len(x), -1, 2, half)
            parts = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
            half *= 2
        mixed = parts.reshape(len(x), odd, even) * even**-0.5
        if odd > 1:
            mixed = np.einsum("pq,nqe->npe", _hartley(odd), mixed, optimize=True)
        result: np.ndarray = mixed.reshape(len(x), self.width)
        return result


def _hartley(m: int) -> np.ndarray:
    angles = 2 * np.pi * (np.outer(np.arange(m), np.arange(m)) % m) / m
    matrix: np.ndarray = (np.cos(angles) + np.sin(angles)) * m**-0.5
    return matrix


def rotation(width: int, seed: int) -> Rotation:
    """The rotation of this width and seed."""
    return Rotation(np.where(np.random.default_rng(seed).random(width) < 0.5, np.float32(-1), np.float32(1)))
