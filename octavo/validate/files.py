"""The files of a report, all or none: an interrupted run leaves what a former one wrote."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import UsageError
from .badge import badge, markdown
from .lines import Report
from .page import html


def write(report: Report, folder: Path) -> list[Path]:
    """report.html, report.json, badge.svg and badge.md in `folder`, which exists. Raises UsageError."""
    texts = {"report.html": html(report), "report.json": json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n", "badge.svg": badge(report),
             "badge.md": markdown(report) + "\n"}
    parts = {folder / name: folder / f".{name}.part" for name in texts}
    at = folder
    try:
        for (path, part), text in zip(parts.items(), texts.values(), strict=True):
            at = path
            part.write_text(text, encoding="utf-8")
        for path, part in parts.items():
            at = path
            part.replace(path)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(at), remedy="choose another folder with --out") from None
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return list(parts)
