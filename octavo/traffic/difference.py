"""Is the difference between two runs real? Intervals of ratios by block bootstrap.

Requests that follow each other share a batch, a queue and the machine's mood, so they are not independent: whole stretches of time are drawn again, not
single requests (Kunsch 1989; Carlstein 1986 for disjoint blocks). The bootstrap gives the spread of the logarithm of B's value over A's; the interval is that
spread times Student's t with as many degrees of freedom as there are blocks to spare. Where neighbouring blocks are still alike (a slow spell lasts longer
than one), the interval is widened by what their correlation says: as if there were fewer blocks. Several figures are judged at once, so each is held to a
stricter level (Bonferroni), and all together to 99%: of a hundred comparisons of a server with itself about one may call anything different.

One run of each side cannot tell a server from the machine's mood on that day: what differs from run to run is not in it. With three runs of each side or
more the interval is that of Student's t on the logarithms of the runs' own figures, pooled; with two, the wider of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

BLOCKS = 20
DRAWS = 1000
PLACES, AROUND = 1000, 0.2  # where the percentile of a draw is looked for: so many places, from so much below its share on
FEWEST_BEYOND = 10  # requests beyond a percentile that it takes to say anything about it
ENOUGH_RUNS = 3  # of each side: from here on the runs alone, which are independent, say how sure a difference is
Verdict = Literal["lower", "higher", "no difference", "cannot say"]


@dataclass(frozen=True)
class Series:
    """Requests of one run in the order of `due`. latency, ttft, tpot [n] seconds (NaN where there is none); tokens, due, end [n]; seconds of the run."""

    due: np.ndarray
    end: np.ndarray
    latency: np.ndarray
    ttft: np.ndarray
    tpot: np.ndarray
    tokens: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Difference:
    """One figure of two runs. `ratio` is B's over A's; low and high hold its true value with the confidence of the whole comparison."""

    name: str
    a: float
    b: float
    ratio: float
    low: float
    high: float
    verdict: Verdict
    """B against A; "cannot say" where there are too few requests."""


@dataclass(frozen=True)
class Figure:
    """What is compared: a percentile of a column (share), or a rate (share None)."""

    name: str
    column: str
    share: float | None


FIGURES = (
    Figure("latency p50", "latency", 0.50), Figure("latency p95", "latency", 0.95), Figure("latency p99", "latency", 0.99),
    Figure("ttft p50", "ttft", 0.50), Figure("ttft p95", "ttft", 0.95), Figure("tpot p50", "tpot", 0.50),
    Figure("tokens/s", "tokens", None), Figure("requests/s", "requests", None),
)


def differences(a: Sequence[Series], b: Sequence[Series], *, confidence: float = 0.99, seed: int = 0, figures: Sequence[Figure] = FIGURES) -> list[Difference]:
    """B against A, figure by figure; `a` and `b` are the runs of each side. All verdicts together are right with `confidence`."""
    each = 1 - (1 - confidence) / len(figures)
    dice = np.random.default_rng(seed)
    enough = min(len(a), len(b)) >= ENOUGH_RUNS
    return [_difference(figure, _blocks(figure, a), _blocks(figure, b), each, dice, _between(figure, a, b, each), enough) for figure in figures]


def _between(figure: Figure, a: Sequence[Series], b: Sequence[Series], level: float) -> float:
    """How far the logarithm of the ratio may be off by what runs of one side differ by; 0 where a side has one run only."""
    sides = [np.log([max(_value(figure, blocks), 1e-12) for run in side if (blocks := _blocks(figure, [run]))]) for side in (a, b)]
    if min(map(len, sides)) < 2:
        return 0.0
    freedom = sum(map(len, sides)) - 2
    variance = sum(float(((side - side.mean()) ** 2).sum()) for side in sides) / freedom
    return student(level, max(freedom, 3)) * math.sqrt(variance * sum(1 / len(side) for side in sides))


def _blocks(figure: Figure, runs: Sequence[Series]) -> list[np.ndarray]:
    """The values of stretches of time of all runs: latencies of the requests due in each, or one rate for each."""
    found: list[np.ndarray] = []
    each = max(2, BLOCKS // len(runs))
    for run in runs:
        values = getattr(run, figure.column, None)
        edges = np.linspace(0.0, run.seconds, each + 1)
        if figure.share is None:
            inside = (run.end >= 0) & (run.end <= run.seconds)
            amounts = (run.tokens if figure.column == "tokens" else np.ones(len(run.end)))[inside]
            rates, _ = np.histogram(run.end[inside], edges, weights=amounts)
            found += [np.array([rate]) for rate in rates / (edges[1] - edges[0])]
            continue
        assert values is not None
        places = np.clip(np.searchsorted(edges, run.due, side="right") - 1, 0, each - 1)
        known = np.isfinite(values)
        found += [values[known & (places == place)] for place in range(each)]
    return [block for block in found if len(block)]


def _value(figure: Figure, blocks: Sequence[np.ndarray]) -> float:
    values = np.concatenate(blocks)
    return float(values.mean() if figure.share is None else np.quantile(values, figure.share))


def _draws(figure: Figure, blocks: list[np.ndarray], dice: np.random.Generator) -> np.ndarray:
    """The figure [DRAWS] of blocks drawn with replacement."""
    picks = dice.integers(0, len(blocks), (DRAWS, len(blocks)))
    if figure.share is None:
        return np.concatenate(blocks)[picks].mean(axis=1)
    # A percentile of drawn blocks is one of weighted values: sort all once; how many of each block lie at or below a place is known for all draws.
    values, owner = np.concatenate(blocks), np.repeat(np.arange(len(blocks)), [len(b) for b in blocks])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    places = np.unique(np.linspace(max(figure.share - AROUND, 0.0), 1.0, PLACES) * (len(values) - 1)).astype(np.int64)
    below = np.array([np.searchsorted(np.flatnonzero(owner == block), places, side="right") for block in range(len(blocks))], np.float32)
    times = np.array([np.bincount(pick, minlength=len(blocks)) for pick in picks], np.float32)
    weights, totals = times @ below, times @ np.bincount(owner, minlength=len(blocks)).astype(np.float32)
    return values[places[np.argmax(weights >= figure.share * totals[:, None], axis=1)]]


def _alike(figure: Figure, sides: Sequence[list[np.ndarray]]) -> float:
    """How alike neighbouring blocks are: their correlation, of all sides together, 0 or more. Corrected for the bias of short series (Kendall 1954)."""
    above = below = 0.0
    count = 0
    for blocks in sides:
        middles = np.log([max(float(np.median(b)), 1e-12) for b in blocks])
        middles -= middles.mean()
        above, below, count = above + float((middles[1:] * middles[:-1]).sum()), below + float((middles**2).sum()), count + len(blocks)
    found = above / below if below else 0.0
    fewest = count / len(sides)
    return float(np.clip((found * fewest + 1) / (fewest - 3), 0.0, 0.9))


def _difference(figure: Figure, a: list[np.ndarray], b: list[np.ndarray], level: float, dice: np.random.Generator,
                between: float, enough: bool) -> Difference:
    nan = float("nan")
    if not a or not b:
        return Difference(figure.name, nan, nan, nan, nan, nan, "cannot say")
    left, right = _value(figure, a), _value(figure, b)
    beyond = min(sum(map(len, side)) * (1 - figure.share) for side in (a, b)) if figure.share is not None else FEWEST_BEYOND
    if beyond < FEWEST_BEYOND or min(len(a), len(b)) < 5 or left <= 0 or right <= 0:
        return Difference(figure.name, left, right, right / left if left else nan, nan, nan, "cannot say")
    tiny = 1e-12
    drawn = np.log(np.maximum(_draws(figure, b, dice), tiny)) - np.log(np.maximum(_draws(figure, a, dice), tiny))
    middle = math.log(right / left)
    alike = _alike(figure, (a, b))
    inflation = (1 + alike) / (1 - alike)                # of the variance of a mean, by neighbours that are alike
    reach = student(level, max((min(len(a), len(b)) - 1) / inflation, 3.0)) * float(drawn.std()) * math.sqrt(inflation)
    reach = between if enough else max(reach, between)
    low, high = math.exp(middle - reach), math.exp(middle + reach)
    verdict: Verdict = "higher" if low > 1 else "lower" if high < 1 else "no difference"
    return Difference(figure.name, left, right, math.exp(middle), low, high, verdict)


def student(confidence: float, freedom: float) -> float:
    """Student's t that holds `confidence` between minus and plus it; Cornish and Fisher's expansion, good to 1% from 4 degrees of freedom on."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2) + (
        3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
