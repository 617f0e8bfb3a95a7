"""How sure a mean over a text is: tokens of one passage are not independent, so whole passages are drawn again (block bootstrap)."""

from __future__ import annotations

import numpy as np

DRAWS = 2000


def block_bootstrap(values: np.ndarray, block: int, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The interval that holds the mean of `values` [n] with probability `level`.

    Cuts the sequence into blocks of `block` values (the last may be shorter), draws as many blocks as there are with replacement, takes the
    mean of all their values, `draws` times, and returns the percentiles (Kunsch 1989, with disjoint blocks as in Carlstein 1986). To
    compare two models on one text, pass the differences per token: what is hard about the text cancels out. With fewer than two
    blocks nothing can be said: (nan, nan).
    """
    starts = np.arange(0, len(values), block)
    if len(starts) < 2:
        return float("nan"), float("nan")
    sums = np.add.reduceat(values.astype(np.float64), starts)
    counts = np.diff(np.append(starts, len(values))).astype(np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(starts), size=(draws, len(starts)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
