"""The integer program: one choice for each item, least cost within a limit of bytes, or fewest bytes within a limit of cost (multiple-choice knapsack).

Solved exactly by scipy's branch and bound (HiGHS, arXiv 1711.06095 of the same authors' simplex; scipy.optimize.milp). What comes out is checked against the
limit in whole numbers, since the solver's own arithmetic has tolerances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import UsageError

TRIES = 8        # a limit that the solver's tolerance oversteps is drawn in so often
GAP = 1e-4       # of the aim: a choice is taken that is proved to be so near the best
TOLERANCE = 1e-6
EXACT = 1e-12     # rounding errors of sums
STEPS = 100       # of bisection, for the price


@dataclass(frozen=True)
class Item:
    """`bytes[i]` (whole numbers) and `cost[i]` (nats) of its choices."""

    name: str
    bytes: np.ndarray
    cost: np.ndarray


@dataclass(frozen=True)
class Solution:
    """The choice of each item, and what they come to."""

    choice: tuple[int, ...]
    bytes: int
    cost: float


def total(items: Sequence[Item], choice: Sequence[int]) -> Solution:
    """What these choices come to."""
    return Solution(tuple(choice), sum(int(item.bytes[i]) for item, i in zip(items, choice, strict=True)),
                    float(sum(float(item.cost[i]) for item, i in zip(items, choice, strict=True))))


def cheapest(items: Sequence[Item], most_bytes: int, *, gap: float = GAP) -> Solution:
    """The least cost within `most_bytes`. Raises UsageError where even the smallest choices are larger."""
    least = sum(int(item.bytes.min()) for item in items)
    if least > most_bytes:
        raise UsageError(f"{most_bytes / 1e6:.2f} MB for the weights of the search", remedy=f"with these candidates it takes at least {least / 1e6:.2f} MB")
    return _solve(items, [item.cost for item in items], [item.bytes for item in items], float(most_bytes), gap)


def smallest(items: Sequence[Item], most_cost: float, *, gap: float = GAP) -> Solution:
    """The fewest bytes within `most_cost`. Raises UsageError where even the costliest bits lose more."""
    least = float(sum(item.cost.min() for item in items))
    if least > most_cost:
        raise UsageError(f"a KL of at most {most_cost:.4g}", remedy=f"with these candidates at least {least:.4g} is expected; name one with more bits")
    return _solve(items, [item.bytes for item in items], [item.cost for item in items], most_cost, gap)


def _solve(items: Sequence[Item], aim: Sequence[np.ndarray], used: Sequence[np.ndarray], limit: float, gap: float) -> Solution:
    """Least sum of `aim` with the sum of `used` within `limit`, which the least of each fits into."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    known, kept = _core(aim, used, limit)
    value = np.concatenate([a[k] - a.min() for a, k in zip(aim, kept, strict=True)]).astype(np.float64)
    weight = np.concatenate([u[k] - u.min() for u, k in zip(used, kept, strict=True)]).astype(np.float64)
    owner = np.repeat(np.arange(len(items)), [len(k) for k in kept])
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    scale = max(float(np.median([np.ptp(a[k]) for a, k in zip(aim, kept, strict=True) if len(k) > 1] or [1.0])), 1e-300)
    allowed = limit - sum(float(u.min()) for u in used)
    for _ in range(TRIES):
        size = max(allowed, 1e-300)
        result = milp(value / scale, integrality=np.ones(len(value)), bounds=Bounds(0, 1), options={"mip_rel_gap": gap},
                      constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(weight[None, :] / size, -np.inf, allowed / size)])
        if result.x is None:
            break
        picked = [int(k[np.argmax(result.x[owner == i])]) for i, k in enumerate(kept)]
        over = _sum(used, picked) - limit
        if over <= limit * EXACT:
            return total(items, min(known, picked, key=lambda choice: _sum(aim, choice)))
        allowed -= max(over, allowed * TOLERANCE)
    return total(items, known)


def _core(aim: Sequence[np.ndarray], used: Sequence[np.ndarray], limit: float) -> tuple[list[int], list[np.ndarray]]:
    """(a good solution, the choices of each item that a better one can have).

    With a price p for what is used, sum(min(aim + p * used)) - p * limit is a bound from below for every p (Lagrange). A choice whose aim + p * used lies
    above its item's least by more than the known solution lies above the bound is in no better solution, and with the best price hardly any is not.
    """
    kept = [_undominated(a, u) for a, u in zip(aim, used, strict=True)]
    most = max(len(k) for k in kept)
    a, u = (np.array([[*v[k], *[np.inf] * (most - len(k))] for v, k in zip(values, kept, strict=True)], np.float64) for values in (aim, used))
    u[~np.isfinite(u)] = 0.0
    rows = np.arange(len(kept))

    def pick(price: float) -> np.ndarray:
        best: np.ndarray = np.argmin(a + price * u, axis=1)
        return best

    low, high = 0.0, float(np.ptp(a[np.isfinite(a)])) / limit if limit > 0 else 1.0
    high = max(high, 1e-300)
    if u[rows, pick(0.0)].sum() <= limit:
        high = 0.0
    else:
        while u[rows, pick(high)].sum() > limit and high < 1e300:
            low, high = high, high * 4
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if u[rows, pick(middle)].sum() > limit else (low, middle)
    chosen = pick(high)
    if u[rows, chosen].sum() > limit:
        chosen = np.argmin(np.where(np.isfinite(a), u, np.inf), axis=1)
    while True:  # one better choice after the other, as long as one fits
        gain = a[rows, chosen][:, None] - a
        gain[u[rows, chosen].sum() - u[rows, chosen][:, None] + u > limit] = -np.inf
        item, better = np.unravel_index(int(np.argmax(gain)), gain.shape)
        if not gain[item, better] > 0:
            break
        chosen[item] = better
    priced = a + high * u
    least = priced.min(axis=1)
    above = float(a[rows, chosen].sum() - (least.sum() - high * limit))
    near = priced - least[:, None] <= max(above, 0.0) * (1 + 1e-6) + float(np.abs(least).sum()) * EXACT
    near[rows, chosen] = True
    return [int(k[c]) for k, c in zip(kept, chosen, strict=True)], [k[near[i, : len(k)]] for i, k in enumerate(kept)]


def _sum(values: Sequence[np.ndarray], choice: Sequence[int]) -> float:
    return sum(float(v[c]) for v, c in zip(values, choice, strict=True))


def _undominated(aim: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Choices for which no other is as good in both, from the least `used` on."""
    order = np.lexsort((aim, used))
    best, kept = np.inf, []
    for i in order:
        if aim[i] < best:
            best = float(aim[i])
            kept.append(int(i))
    return np.array(kept)
