"""What range of a tensor's values gets the codes, found from batches of them as they pass: the smallest and largest, a percentile, the least squared
error, the least divergence. NumPy only; a batch is dropped once it has been counted.

An observer's histogram has bins whose width is a power of two and which meet at zero. When a value lies outside, the width doubles and bins are added
in pairs, so counts stay exact and neither the order nor the size of batches changes the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError

BINS = 4096  # on each side of zero
LEVELS = 254  # steps between the codes -127 and 127
SMALLEST = 2.0**-100  # widths of bins are no finer


@dataclass(frozen=True)
class Fixed:
    """value = scale * (code - zero_point), codes from -127 to 127."""

    scale: float
    zero_point: int = 0


class Observer:
    """Counts values, then says which range is worth the codes.

    least, most   the smallest and largest finite value seen; 0 and 0 before any
    counts        int64 [2 * BINS]: of bin i, which holds values from (i - BINS) * width on
    width         of a bin; 0 as long as nothing but zeros was seen
    strange       how many values were NaN or infinite; they are not counted
    """

    def __init__(self, method: str = "mse") -> None:
        if method not in METHODS:
            raise UsageError(f"unknown observer {method!r}", where="static activations", remedy=f"known: {', '.join(METHODS)}")
        self.method = method
        self.least = self.most = self.width = 0.0
        self.counts = np.zeros(2 * BINS, np.int64)
        self.strange = 0

    def update(self, values: np.ndarray) -> None:
        """Counts an array of floats, of any shape."""
        flat = np.asarray(values, np.float32).reshape(-1)
        finite = np.isfinite(flat)
        if not finite.all():
            self.strange += int(flat.size - finite.sum())
            flat = flat[finite]
        if not flat.size:
            return
        least, most = float(flat.min()), float(flat.max())
        self.least, self.most = (least, most) if not self.seen else (min(self.least, least), max(self.most, most))
        self._widen(max(-least, most))
        if self.width == 0:
            self.counts[BINS] += flat.size
            return
        places = np.floor(flat * np.float32(1 / self.width)).astype(np.int32)  # exact: the width is a power of two
        np.clip(places, -BINS, BINS - 1, out=places)
        self.counts += np.bincount(places + BINS, minlength=2 * BINS)

    @property
    def seen(self) -> int:
        """How many finite values were counted."""
        return int(self.counts.sum())

    def range(self, symmetric: bool = True) -> tuple[float, float]:
        """(low, high) that the codes should span; contains 0. symmetric: low is -high. Raises UsageError when nothing was seen."""
        if not self.seen:
            raise UsageError("no finite values were observed", where="calibration", remedy="check that the data reaches this layer")
        low, high = min(self.least, 0.0), max(self.most, 0.0)
        if self.width == 0:
            return (-high, high) if symmetric else (low, high)
        low, high = METHODS[self.method](self, low, high, symmetric)
        return (-max(-low, high), max(-low, high)) if symmetric else (low, high)

    def fixed(self, symmetric: bool = True) -> Fixed:
        """Scale and zero point of int8 codes for that range. A tensor of zeros gets scale 1."""
        low, high = self.range(symmetric)
        return fixed_for(low, high)

    def _widen(self, size: float) -> None:
        if size == 0 or (self.width and size < self.width * BINS):
            return
        wanted = max(2.0 ** math.ceil(math.log2(size / BINS)), SMALLEST)
        while wanted * BINS <= size:  # the bins hold values below their end
            wanted *= 2
        if self.width:
            for _ in range(round(math.log2(wanted / self.width))):
                pairs = self.counts.reshape(-1, 2).sum(axis=1)
                self.counts = np.zeros_like(self.counts)
                self.counts[BINS // 2 : BINS // 2 + BINS] = pairs
        self.width = wanted


def fixed_for(low: float, high: float) -> Fixed:
    """Scale and zero point of int8 codes from -127 to 127 over [low, high], which contains 0; zero is exact."""
    if -low == high:
        return Fixed(float(high) / 127 or 1.0)
    scale = (high - low) / LEVELS
    return Fixed(float(scale), max(-127, min(127, round(-127 - low / scale))))


def _min_max(seen: Observer, low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """Everything: no value is clipped. Source: Krishnamoorthi, arXiv:1806.08342, section 3."""
    return low, high


def _percentile(seen: Observer, low: float, high: float, symmetric: bool, part: float = 0.99995) -> tuple[float, float]:
    """All but 0.01% of the values, half of those at each end (symmetric: of the magnitudes). Source: Wu et al., arXiv:2004.09602, section 5
    (calibration by percentile)."""
    if symmetric:
        sizes = _magnitudes(seen)
        end = (int(np.searchsorted(np.cumsum(sizes), (2 * part - 1) * seen.seen)) + 1) * seen.width
        return max(low, -end), min(high, end)
    below = np.cumsum(seen.counts)
    first = int(np.searchsorted(below, (1 - part) * seen.seen, side="right")) - BINS
    last = int(np.searchsorted(below, part * seen.seen)) + 1 - BINS
    return min(max(low, first * seen.width), 0.0), max(min(high, last * seen.width), 0.0)


def _least_error(seen: Observer, low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """The ends with the least expected squared error of rounding and clipping. Source: Nagel et al., arXiv:2106.08295, section 3.1 (MSE range)."""
    centers, weights = _occupied(seen)

    def error(a: float, b: float) -> float:
        fixed = fixed_for(a, b)
        codes = np.clip(np.round(centers / fixed.scale) + fixed.zero_point, -127, 127)
        return float(weights @ (centers - fixed.scale * (codes - fixed.zero_point)) ** 2)

    parts = np.linspace(0.05, 1.0, 96)
    if symmetric:
        top = max(-low, high)
        best = min(parts, key=lambda p: (error(-p * top, p * top), -p))
        return -best * top, best * top
    a = b = 1.0
    for _ in range(3):  # one end after the other, until neither moves
        before = a, b
        b = min(parts, key=lambda p: (error(a * low, p * high or -a * low * 1e-6), -p)) if high > 0 else b
        a = min(parts, key=lambda p: (error(p * low, b * high), -p)) if low < 0 else a
        if (a, b) == before:
            break
    return float(a * low), float(b * high)


def _least_divergence(seen: Observer, low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """The ends whose codes, spread over the values they stand for, diverge least from the values clipped there. It counts how often values are clipped,
    not by how much: a few very large ones, which decide in language models, are cut off. Source: Migacz, "8-bit inference with TensorRT", GTC 2017;
    described in arXiv:2004.09602, section 5 (entropy)."""
    centers, weights = _occupied(seen)
    zero = np.searchsorted(centers, 0.0)  # the bin from 0 on: exact zeros (of a ReLU, of padding) lose nothing, and must not outweigh what does
    if zero < len(centers) and centers[zero] < seen.width and len(centers) > 1:
        beside = max(weights[i] for i in (zero - 1, zero + 1) if 0 <= i < len(weights))
        weights[zero] = min(weights[zero], beside)
        weights /= weights.sum()
    best, chosen = math.inf, 1.0
    for part in np.linspace(0.1, 1.0, 91)[::-1]:
        a, b = part * low, part * high
        fixed = fixed_for(-max(-a, b), max(-a, b)) if symmetric else fixed_for(a, b)
        inside = np.abs(centers / fixed.scale + fixed.zero_point) <= 127.5
        if not inside.any():
            continue
        kept = np.where(inside, weights, 0.0)
        clipped = kept.copy()
        places = np.flatnonzero(inside)
        clipped[places[0]] += weights[: places[0]].sum()
        clipped[places[-1]] += weights[places[-1] + 1 :].sum()
        codes = (np.clip(np.round(centers / fixed.scale) + fixed.zero_point, -127, 127) + 127).astype(np.int64)
        total = np.bincount(codes[inside], kept[inside], minlength=255)
        bins = np.bincount(codes[inside], minlength=255)
        spread = total[codes[inside]] / bins[codes[inside]]
        p, q = clipped[inside] / clipped.sum(), spread / spread.sum()
        divergence = float(p @ np.log(p / q))
        if divergence < best - 1e-12:
            best, chosen = divergence, float(part)
    return chosen * low, chosen * high


def _magnitudes(seen: Observer) -> np.ndarray:
    return seen.counts[BINS:] + seen.counts[BINS - 1 :: -1]


def _occupied(seen: Observer) -> tuple[np.ndarray, np.ndarray]:
    """(centers, shares) of the bins that hold something, ascending."""
    full = np.flatnonzero(seen.counts)
    return (full - BINS + 0.5) * seen.width, seen.counts[full] / seen.counts.sum()


METHODS: dict[str, Callable[[Observer, float, float, bool], tuple[float, float]]] = {
    "min-max": _min_max, "percentile": _percentile, "mse": _least_error, "entropy": _least_divergence}
