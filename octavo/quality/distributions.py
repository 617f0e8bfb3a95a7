"""Quantiles that intervals are made of: Student's t for whole degrees of freedom, and the beta distribution. (scipy has both; serving does without it.)"""

from __future__ import annotations

import math
from functools import cache


@cache
def student(probability: float, freedom: int) -> float:
    """The value that Student's t of `freedom` degrees stays below with this probability (above 0.5)."""
    low, high = 0.0, 1.0
    while student_below(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_below(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def student_below(t: float, freedom: int) -> float:
    """P(T <= t), t >= 0, in closed form (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for i in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (i - 1) / i
        total += term
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2


def beta(probability: float, a: float, b: float) -> float:
    """The value that a beta distribution stays below with this probability, to 1e-11."""
    low, high = 0.0, 1.0
    for _ in range(36):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_below(middle, a, b) < probability else (low, middle)
    return (low + high) / 2


def beta_below(x: float, a: float, b: float) -> float:
    """P(X <= x), the regularized incomplete beta function, by its continued fraction (DLMF 8.17.22), good to 1e-11."""
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # beyond the mean it converges slowly; the mirror image does not
        return 1 - beta_below(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    value, c, d = 1.0, 1.0, 0.0  # Lentz's way from the front: no term has to be chosen as the last one
    for i in range(10_000):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / ((1 + term * d) or 1e-300)
        c = (1 + term / c) or 1e-300
        value *= c * d
        if i and abs(1 - c * d) < 1e-12:
            break
    return front * (value - 1)
