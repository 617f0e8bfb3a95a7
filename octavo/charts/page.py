"""One HTML file that holds everything it shows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; lighter ones on dark ground.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b3589a", "#8a6d00", "#1f6f8b", "#555555", "#7a3b00")
_DARK = ("#56b4e9", "#ff9a4d", "#3ddca8", "#e79cc9", "#f0e442", "#7fd0e8", "#bbbbbb", "#d9a066")

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --faint: #d9d9d9; --quiet: #595959; --good: #00704f; --bad: #b3261e; %s }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #16181b; --faint: #3a3e44; --quiet: #a9b0b8; --good: #3ddca8; --bad: #ff9a8a; %s } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p { max-width: 60rem; } .quiet { color: var(--quiet); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; white-space: normal; vertical-align: bottom; }
figure { margin: 1.5rem 0; max-width: 50rem; } figcaption { font-weight: 600; } svg { width: 100%%; height: auto; }
.grid { stroke: var(--faint); stroke-width: .6; } .axis { stroke: var(--ink); } .tick, .note { fill: var(--quiet); font-size: 12px; }
.line { fill: none; stroke-width: 2; } .legend { margin: 0; } .key { margin-right: 1.2rem; }
.key i { display: inline-block; width: 1.1em; height: .7em; margin-right: .4em; }
.pass { color: var(--good); font-weight: 600; } .fail { color: var(--bad); font-weight: 600; }
%s"""


def _style() -> str:
    light, dark = (" ".join(f"--c{i}: {colour};" for i, colour in enumerate(colours)) for colours in (_LIGHT, _DARK))
    rules = "\n".join(f".line.c{i} {{ stroke: var(--c{i}); }} .dot.c{i}, .bar.c{i} {{ fill: var(--c{i}); }} .key .c{i} {{ background: var(--c{i}); }}"
                      for i in range(len(_LIGHT)))
    return _STYLE % (light, dark, rules)


def escaped(text: object) -> str:
    return escape(str(text))


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document of `parts`, which are HTML already."""
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{_style()}</style></head>\n<body><main><h1>{escape(title)}</h1>\n" + "\n".join(parts)
            + "\n</main></body></html>\n")


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, *, quiet: bool = False) -> str:
    return f'<p{" class=quiet" if quiet else ""}>{escape(text)}</p>'


def table(titles: Sequence[str], rows: Sequence[Sequence[object]], *, marks: Sequence[str] = (), marked: int = 0) -> str:
    """Texts are escaped. `marks`: a class for each row, such as pass or fail, or nothing, which its cell number `marked` gets."""
    head = "".join(f'<th scope="col">{escape(t)}</th>' for t in titles)
    body = "".join("<tr>" + "".join(f"<td{f' class={marks[i]}' if place == marked and marks and marks[i] else ''}>{escape(str(cell))}</td>"
                                    for place, cell in enumerate(row)) + "</tr>" for i, row in enumerate(rows))
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
