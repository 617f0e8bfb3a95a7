"""The badge for a README: an SVG that needs no network, and the line of Markdown that shows it."""

from __future__ import annotations

from html import escape

from .lines import Report

LABEL = "octavo validate"
GREEN, RED, AMBER = "#2c7a3f", "#b3261e", "#8a6100"  # white text on each is read easily (contrast above 4.5)
LETTER, MARGIN, HEIGHT = 6.6, 10, 20  # width of a letter of 11 px Verdana, on average


def badge(report: Report) -> str:
    """The SVG."""
    text = report.verdict
    colour = GREEN if report.passed else RED if report.counts["fail"] else AMBER
    left, right = (round(len(part) * LETTER + 2 * MARGIN) for part in (LABEL, text))
    spoken = escape(f"{LABEL}: {text}", quote=True)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{HEIGHT}" role="img" aria-label="{spoken}"><title>{spoken}</title>'
            f'<clipPath id="r"><rect width="{left + right}" height="{HEIGHT}" rx="3"/></clipPath><g clip-path="url(#r)">'
            f'<rect width="{left}" height="{HEIGHT}" fill="#444"/><rect x="{left}" width="{right}" height="{HEIGHT}" fill="{colour}"/></g>'
            f'<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
            f'<text x="{left / 2:g}" y="14">{escape(LABEL)}</text><text x="{left + right / 2:g}" y="14">{escape(text)}</text></g></svg>\n')


def markdown(report: Report, image: str = "badge.svg", page: str = "report.html") -> str:
    """One line; the paths are as seen from the README."""
    return f"[![{LABEL}: {report.verdict}]({image})]({page})"
