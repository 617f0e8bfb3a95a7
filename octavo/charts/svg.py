"""Line and bar charts as SVG text. Colours come from the page's style (charts.page), so that one drawing suits dark and light."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .scale import Scale, fit, short

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 14, 48
COLOURS = 8  # in the page's style
DASHES = ("", "7 3", "2 3", "10 3 2 3")


@dataclass(frozen=True)
class Line:
    """Points (x, y) in their order; values that are not finite break the line. `dots` marks each point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False
    joined: bool = True
    labels: Sequence[str] = ()
    """A text for each point, written beside it."""


def lines(series: Sequence[Line], *, title: str, x: str, y: str, log_x: bool = False, log_y: bool = False, zero: bool = True) -> str:
    """A chart of lines, with a legend where there are several. `zero`: the y axis begins at 0. `title` is read to those who cannot see it."""
    across = fit((v for s in series for v in s.x), LEFT, WIDTH - RIGHT, log=log_x)
    upward = fit((v for s in series for v in s.y), HEIGHT - BOTTOM, TOP, log=log_y, zero=zero)
    parts = [*_grid(across, upward, x, y)]
    for number, one in enumerate(series):
        colour = number % COLOURS
        points = [(across(a), upward(b)) if _drawable(a, log_x) and _drawable(b, log_y) else None for a, b in zip(one.x, one.y, strict=True)]
        if one.joined:
            dash = DASHES[number // COLOURS % len(DASHES)] if len(series) > COLOURS else DASHES[number % len(DASHES)]
            parts.append(f'<path class="line c{colour}" d="{_path(points)}"' + (f' stroke-dasharray="{dash}"' if dash else "") + "/>")
        for place, point in enumerate(points):
            if point is not None and (one.dots or not one.joined):
                parts.append(f'<circle class="dot c{colour}" cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="3.5"/>')
                if one.labels:
                    parts.append(f'<text class="note" x="{point[0] + 6:.1f}" y="{point[1] - 6:.1f}">{escape(one.labels[place])}</text>')
    return _figure(parts, title, [s.name for s in series] if len(series) > 1 else [])


def bars(names: Sequence[str], groups: dict[str, Sequence[float]], *, title: str, y: str) -> str:
    """Bars for each name, one of each group beside the others. Values that are not finite are left out."""
    upward = fit((v for values in groups.values() for v in values), HEIGHT - BOTTOM, TOP, zero=True)
    room = (WIDTH - RIGHT - LEFT) / max(len(names), 1)
    width = room * 0.8 / max(len(groups), 1)
    parts = [*_grid(None, upward, "", y)]
    for place, name in enumerate(names):
        left = LEFT + place * room + room * 0.1
        for number, values in enumerate(groups.values()):
            if math.isfinite(value := values[place]):
                top = upward(max(value, 0.0))
                parts.append(f'<rect class="bar c{number % COLOURS}" x="{left + number * width:.1f}" y="{top:.1f}" width="{width * 0.92:.1f}" '
                             f'height="{max(upward(0.0) - top, 0.5):.1f}"><title>{escape(name)}: {value:.4g}</title></rect>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{left + room * 0.4:.1f}" y="{HEIGHT - BOTTOM + 18}">{escape(name)}</text>')
    return _figure(parts, title, list(groups) if len(groups) > 1 else [])


def _drawable(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "L"
    return "".join(parts)


def _grid(across: Scale | None, upward: Scale, x: str, y: str) -> list[str]:
    """Axes, ticks and what they are of."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in upward.ticks:
        place = upward(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}"/>'
                     f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{place + 4:.1f}">{short(tick)}</text>')
    for tick in across.ticks if across is not None else []:
        place = across(tick) if across is not None else 0.0
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom}"/>'
                     f'<text class="tick" text-anchor="middle" x="{place:.1f}" y="{bottom + 18}">{short(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="tick" text-anchor="middle" x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 8}">{escape(x)}</text>')
    parts.append(f'<text class="tick" text-anchor="middle" transform="translate(14 {(TOP + bottom) / 2:.0f}) rotate(-90)">{escape(y)}</text>')
    return parts


def _figure(parts: Sequence[str], title: str, names: Sequence[str]) -> str:
    legend = "".join(f'<span class="key"><i class="c{i % COLOURS}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return (f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
            f'{"".join(parts)}</svg>{f"<p class=legend>{legend}</p>" if legend else ""}</figure>')
