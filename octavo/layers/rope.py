"""Rotary positions (arXiv 2104.09864) and the ways in which models stretch them to longer contexts.

Angles are computed in float32 step by step as transformers computes them: at position 8,000 a last-bit difference of a frequency is
already 0.0005 radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ModelError
from ..kernels.op import Value
from .tensors import Table, Tensors


@dataclass(frozen=True)
class Rope:
    """kind         default, linear, dynamic, llama3, yarn, longrope
    theta        base of the geometric row of frequencies
    positions    rows of the table: the longest sequence served
    options      the other fields of `rope_parameters` (rope_scaling in older configs)
    trained      the config's max_position_embeddings
    """

    name: str
    head_dim: int
    theta: float
    positions: int
    trained: int
    kind: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, t: Tensors, x: Value, heads: int) -> Value:
        """x [rows, heads * head_dim], rotated by the positions of the rows."""
        table = t.table(Table(self.name, (self.positions, self.head_dim), self.table))
        return t.ops.rope(x, table, heads, self.head_dim, self.head_dim)

    def table(self) -> np.ndarray:
        """float32 [positions, head_dim]: cosines in the first half of a row, sines in the second."""
        frequencies, factor = self.frequencies()
        half = self.head_dim // 2
        table = np.empty((self.positions, self.head_dim), np.float32)
        for start in range(0, self.positions, 4096):
            at = np.arange(start, min(start + 4096, self.positions), dtype=np.float32)
            angles = (at[:, None] * frequencies).astype(np.float64)
            table[start : start + len(at), :half] = np.cos(angles)
            table[start : start + len(at), half:] = np.sin(angles)
        return table if factor == 1 else table * np.float32(factor)

    def frequencies(self) -> tuple[np.ndarray, float]:
        """(float32 [head_dim / 2] radians per position, factor of all cosines and sines). Raises ModelError for an unknown kind."""
        if self.kind not in KINDS:
            raise ModelError(f"rope of type {self.kind!r} is not supported", where="config.json: rope_parameters", remedy=f"known: {', '.join(KINDS)}")
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        return KINDS[self.kind](self, np.float32(self.theta) ** exponents)

    def number(self, key: str, default: float | None = None) -> float:
        """A field of the config. Raises ModelError naming it when it is missing or no number above 0."""
        value = self.options.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ModelError(f"expected a number above 0 for rope of type {self.kind!r}, found {value!r}", where=f"config.json: rope_parameters.{key}")
        return float(value)


def _default(rope: Rope, periods: np.ndarray) -> tuple[np.ndarray, float]:
    return np.float32(1) / periods, 1.0


def _linear(rope: Rope, periods: np.ndarray) -> tuple[np.ndarray, float]:
    """Position interpolation (arXiv 2306.15595): positions count for less."""
    return np.float32(1) / periods / np.float32(rope.number("factor")), 1.0


def _dynamic(rope: Rope, periods: np.ndarray) -> tuple[np.ndarray, float]:
    """Dynamic NTK scaling leaves sequences of up to the trained length alone; longer ones would change the angles of keys that are cached
    already, which is why they are not offered."""
    if rope.positions > rope.trained:
        raise ModelError(f"contexts beyond {rope.trained} tokens would change the rotation of cached keys", where="config.json: rope_parameters (dynamic)",
                         remedy=f"use a maximum length of at most {rope.trained}")
    return np.float32(1) / periods, 1.0


def _llama3(rope: Rope, periods: np.ndarray) -> tuple[np.ndarray, float]:
    """Llama 3.1 (arXiv 2407.21783, as in Meta's reference code): slow frequencies are divided, fast ones stay, those between are blended."""
    factor, low, high = (np.float32(rope.number(key)) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = np.float32(rope.number("original_max_position_embeddings", rope.trained))
    frequencies = np.float32(1) / periods
    waves = np.float32(2 * math.pi) / frequencies
    blend = (trained / waves - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    return np.where(waves > trained / low, frequencies / factor, np.where(waves < trained / high, frequencies, blended)).astype(np.float32), 1.0


def _yarn(rope: Rope, periods: np.ndarray) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): interpolate the slow frequencies, keep the fast ones, sharpen attention a little."""
    trained = rope.number("original_max_position_embeddings", rope.trained)
    factor = rope.number("factor", rope.trained / trained)

    def boundary(turns: float) -> float:
        """The dimension whose wave turns so many times within the trained length."""
        return rope.head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = boundary(rope.number("beta_fast", 32)), boundary(rope.number("beta_slow", 1))
    if rope.options.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.head_dim - 1)
    span = np.float32(high - low if high != low else 0.001)
    kept = 1 - ((np.arange(len(periods), dtype=np.float32) - np.float32(low)) / span).clip(0, 1)
    frequencies = np.float32(1) / (np.float32(factor) * periods) * (1 - kept) + np.float32(1) / periods * kept
    return frequencies.astype(np.float32), _yarn_attention(rope, factor)


def _yarn_attention(rope: Rope, factor: float) -> float:
    if rope.options.get("attention_factor") is not None:
        return rope.number("attention_factor")

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    if rope.options.get("mscale") and rope.options.get("mscale_all_dim"):
        return scale(rope.number("mscale")) / scale(rope.number("mscale_all_dim"))
    return scale(1)


def _longrope(rope: Rope, periods: np.ndarray) -> tuple[np.ndarray, float]:
    """LongRoPE (arXiv 2402.13753): each frequency has a divisor of its own, one list for short sequences and one for long ones. A sequence
    that grows from short to long would change the rotation of its cached keys, so only one of the lists is ever used."""
    trained = rope.number("original_max_position_embeddings", rope.trained)
    short, long = rope.options.get("short_factor"), rope.options.get("long_factor")
    if short != long and rope.positions > trained:
        raise ModelError(f"contexts beyond {trained:.0f} tokens would change the rotation of cached keys", where="config.json: rope_parameters (longrope)",
                         remedy=f"use a maximum length of at most {trained:.0f}")
    if not isinstance(short, list) or len(short) != len(periods) or not all(isinstance(f, (int, float)) and 0 < f < math.inf for f in short):
        raise ModelError(f"expected {len(periods)} numbers above 0", where="config.json: rope_parameters.short_factor")
    factor = rope.number("factor", rope.trained / trained)
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return np.float32(1) / (np.array(short, np.float32) * periods), rope.number("attention_factor", usual)


KINDS: dict[str, Callable[[Rope, np.ndarray], tuple[np.ndarray, float]]] = {
    "default": _default, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope,
}
