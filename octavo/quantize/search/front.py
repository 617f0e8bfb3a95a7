"""The front: what can be had at each size, and a plot of it as one SVG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from .program import Item, Solution, total

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 440, 72, 24, 48, 56
COLOURS = {"front": "#1f77b4", "uniform": "#7f7f7f", "chosen": "#d62728", "measured": "#2ca02c"}


@dataclass(frozen=True)
class Mark:
    """A plan in the plot: MB of the whole checkpoint, nats per token; `kind`: uniform, chosen, measured."""

    kind: str
    label: str
    size: float
    kl: float


def front(items: Sequence[Item]) -> list[Solution]:
    """All best choices from the smallest to the best that a price per byte singles out: none of their size or smaller costs less.

    Each item goes along the lower convex hull of its choices; the steps of all items, taken in the order of cost saved per byte, lead from one such
    solution to the next (the Lagrangian relaxation of the program, which is exact at these sizes).
    """
    hulls = [_hull(item) for item in items]
    steps = []
    for i, (item, hull) in enumerate(zip(items, hulls, strict=True)):
        for place in range(1, len(hull)):
            before, after = hull[place - 1], hull[place]
            steps.append((-(item.cost[before] - item.cost[after]) / (item.bytes[after] - item.bytes[before]), i, after))
    choice = [hull[0] for hull in hulls]
    found = [total(items, choice)]
    for _, i, after in sorted(steps):
        choice[i] = after
        found.append(total(items, choice))
    return found


def _hull(item: Item) -> list[int]:
    """Choices on the lower convex hull, fewest bytes first, as long as more bytes cost less."""
    order = [int(i) for i in np.lexsort((item.cost, item.bytes))]
    hull: list[int] = []
    for i in order:
        if hull and item.cost[i] >= item.cost[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(item, hull[-2], hull[-1]) >= _slope(item, hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull


def _slope(item: Item, a: int, b: int) -> float:
    return float((item.cost[b] - item.cost[a]) / (item.bytes[b] - item.bytes[a]))


def plot(solutions: Sequence[Solution], fixed: int, marks: Sequence[Mark], title: str) -> str:
    """SVG of the front, KL on a logarithmic axis. `fixed`: bytes of what no choice changes."""
    line = [((s.bytes + fixed) / 1e6, s.cost) for s in solutions if s.cost > 0]
    xs, ys = [x for x, _ in line] + [m.size for m in marks], [y for _, y in line] + [m.kl for m in marks if m.kl > 0]
    x0, x1 = min(xs), max(max(xs), min(xs) * 1.01)
    y0, y1 = math.floor(math.log10(min(ys))), max(math.ceil(math.log10(max(ys))), math.floor(math.log10(min(ys))) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        right, up = (x - x0) / (x1 - x0), (math.log10(max(y, 10.0**y0)) - y0) / (y1 - y0)
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/><text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>']
    for power in range(y0, y1 + 1):
        _, y = at(x0, 10.0**power)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                   f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for x in _ticks(x0, x1):
        px, _ = at(x, 1)
        out.append(f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>'
                   f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">MB, all weights</text>'
               f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">KL, nats per token</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
    out.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS["front"]}" stroke-width="2"><title>predicted front</title></polyline>')
    for mark in marks:
        x, y = at(mark.size, mark.kl)
        said = escape(f"{mark.label}: {mark.size:.1f} MB, KL {mark.kl:.4g}")
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[mark.kind]}"><title>{said}</title></circle>'
                   f'<text x="{x + 6:.1f}" y="{y - 5:.1f}" font-size="10">{escape(mark.label)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """About six round numbers between the two."""
    step = 10.0 ** math.floor(math.log10((high - low) / 5))
    step *= next((m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 7), 10)
    return [round(i * step, 9) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
