"""Text out of files, and columns, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Names come out of files: nothing in them may steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table with blanks between its columns, two in front."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def size(count: float) -> str:
    """Bytes in the unit that suits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
