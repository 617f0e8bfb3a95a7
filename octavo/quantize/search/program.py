"""The integer program: one choice for each item, least cost within a limit of bytes, or fewest bytes within a limit of cost (multiple-choice knapsack).

Solved exactly, in two steps. Lagrange bounds remove the choices that no better solution has (`_core`). Then the items are taken one after another, and of
all partial sums those are kept that no other beats in both what is used and what is aimed at, and whose bound lies below the best known solution (dynamic
programming over undominated states: Nemhauser and Ullmann, Management Science 15, 1969; with the bounds of Dyer, Riha and Walker, European Journal of
Operational Research 81, 1995). No solver with tolerances of its own is asked. Where more than MOST states would be needed, those with the least bounds are
kept, and the solution says how far at most it is from the best (`Solution.gap`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ...errors import UsageError

EXACT = 1e-12     # rounding errors of sums
STEPS = 100       # of bisection, for the price
MOST = 1 << 18    # states after an item, at most


@dataclass(frozen=True)
class Item:
    """`bytes[i]` (whole numbers), `cost[i]` (nats) and `work[i]` (bit operations a token, see Candidates.work_of; empty: as bytes) of its choices."""

    name: str
    bytes: np.ndarray
    cost: np.ndarray
    work: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Solution:
    """The choice of each item, and what they come to. `gap`: no other choices are better by more than this part; 0 where none are."""

    choice: tuple[int, ...]
    bytes: int
    cost: float
    gap: float = 0.0


def total(items: Sequence[Item], choice: Sequence[int]) -> Solution:
    """What these choices come to."""
    return Solution(tuple(choice), sum(int(item.bytes[i]) for item, i in zip(items, choice, strict=True)),
                    float(sum(float(item.cost[i]) for item, i in zip(items, choice, strict=True))))


def cheapest(items: Sequence[Item], most_bytes: int) -> Solution:
    """The least cost within `most_bytes`. Raises UsageError where even the smallest choices are larger."""
    least = sum(int(item.bytes.min()) for item in items)
    if least > most_bytes:
        raise UsageError(f"{max(most_bytes, 0) / 1e6:.2f} MB for the weights of the search", where="--target-size",
                         remedy=f"with these candidates it takes at least {least / 1e6:.2f} MB")
    return _solve(items, [item.cost for item in items], [item.bytes for item in items], float(most_bytes))


def smallest(items: Sequence[Item], most_cost: float, *, work: bool = False) -> Solution:
    """The fewest bytes within `most_cost`; with `work`, the least work. Raises UsageError where even the costliest bits lose more."""
    least = float(sum(item.cost.min() for item in items))
    if least > most_cost:
        raise UsageError(f"a KL of at most {most_cost:.4g}", where="--max-kl",
                         remedy=f"with these candidates at least {least:.4g} is expected; name one with more bits")
    return _solve(items, [item.work if work and len(item.work) else item.bytes for item in items], [item.cost for item in items], most_cost)


class _States(NamedTuple):
    """Partial sums after an item: `used` rising, `aim` falling; which state each came from, and by which of the item's kept choices."""

    used: np.ndarray
    aim: np.ndarray
    parent: np.ndarray
    choice: np.ndarray


def _solve(items: Sequence[Item], aim: Sequence[np.ndarray], used: Sequence[np.ndarray], limit: float) -> Solution:
    """Least sum of `aim` with the sum of `used` within `limit`, which the least of each fits into."""
    core = _core(aim, used, limit)
    within = limit + abs(limit) * EXACT
    left_used = float(sum(u[k].min() for u, k in zip(used, core.kept, strict=True)))
    left_priced = float(sum((a[k] + core.price * u[k]).min() for a, u, k in zip(aim, used, core.kept, strict=True)))
    slack = (abs(left_priced) + core.price * abs(limit) + abs(core.aim)) * EXACT
    states, stages = _States(np.zeros(1), np.zeros(1), np.zeros(1, np.int32), np.zeros(1, np.int16)), list[tuple[np.ndarray, np.ndarray]]()
    dropped = np.inf
    for a, u, k in zip(aim, used, core.kept, strict=True):
        own_aim, own_used = a[k].astype(np.float64), u[k].astype(np.float64)
        left_used -= float(own_used.min())
        left_priced -= float((own_aim + core.price * own_used).min())
        states, least = _joined(states, own_used, own_aim, within - left_used, left_priced - core.price * limit, core.price, core.aim + slack)
        stages.append((states.parent, states.choice))
        dropped = min(dropped, least)
        if not len(states.used):
            break
    choice = core.choice
    if len(states.used) and states.aim[-1] <= core.aim + slack:
        place, choice = len(states.used) - 1, []
        for (parent, picked), k in zip(reversed(stages), reversed(core.kept), strict=True):
            choice.append(int(k[picked[place]]))
            place = int(parent[place])
        choice.reverse()
    reached = _sum(aim, choice)
    return replace(total(items, choice), gap=max(0.0, (reached - dropped) / reached) if dropped < reached - slack else 0.0)


def _joined(states: _States, used: np.ndarray, aim: np.ndarray, room: float, bound: float, price: float, best: float) -> tuple[_States, float]:
    """The states after one more item, and the least bound of those that were dropped for want of room (infinity: none).

    room    what may be used so far, so that the least of what follows still fits
    bound   to be added to aim + price * used, for a bound from below of all that can come of a state
    best    a state whose bound lies above it leads to nothing better
    """
    count = len(states.used)
    all_used, all_aim = (states.used[None, :] + used[:, None]).ravel(), (states.aim[None, :] + aim[:, None]).ravel()
    bounds = all_aim + price * all_used + bound
    good = np.flatnonzero((all_used <= room) & (bounds <= best))
    order = good[np.lexsort((all_aim[good], all_used[good]))]
    lowest = np.minimum.accumulate(all_aim[order]) if len(order) else all_aim[order]
    order = order[np.r_[True, all_aim[order][1:] < lowest[:-1]]] if len(order) else order
    least = np.inf
    if len(order) > MOST:
        rank = np.argsort(bounds[order], kind="stable")
        least = float(bounds[order[rank[MOST]]])
        order = order[np.sort(rank[:MOST])]
    return _States(all_used[order], all_aim[order], (order % count).astype(np.int32), (order // count).astype(np.int16)), least


class _Core(NamedTuple):
    """A good solution and its aim; the choices of each item that a better one can have; the price of what is used."""

    choice: list[int]
    aim: float
    kept: list[np.ndarray]
    price: float


def _core(aim: Sequence[np.ndarray], used: Sequence[np.ndarray], limit: float) -> _Core:
    """With a price p for what is used, sum(min(aim + p * used)) - p * limit is a bound from below for every p (Lagrange). A choice whose aim + p * used lies
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
    choice = [int(k[c]) for k, c in zip(kept, chosen, strict=True)]
    return _Core(choice, _sum(aim, choice), [k[near[i, : len(k)]] for i, k in enumerate(kept)], high)


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
