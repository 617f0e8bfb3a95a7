"""What one start leaves for the next: which copy in the cache a source became, so that the source need not be opened again.

A record is good while the source's files are the same (path, size, modification time, inode of each, and no file more or less), the program,
what it means by its presets, and the machine are the same, and the copy still is the one that was made. Anything else, and anything odd, means
that there is no record: the source is then opened, and its contents decide as ever. Files younger than two seconds leave no record, since a
write within the clock's resolution would not show.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__, layouts
from ..machine import Machine
from ..schemes import meaning_of_presets
from ._kept import RECIPE

SETTLED_SECONDS = 2.0
RECORD = 2  # changes with the fields below


@dataclass(frozen=True)
class Start:
    """What opening the source would tell.

    copy          key of the copy in the cache
    manifest      of the copy: content of the source, plan, layout, recipe
    plan, reason  schemes.Choice: the plan as JSON, and why it
    codec, stored_bytes, notes   for the report
    """

    copy: str
    manifest: dict[str, Any]
    plan: dict[str, Any]
    reason: str
    codec: str
    stored_bytes: int
    notes: list[str]
    statics: Sequence[tuple[float, float]] | None = None  # stored scales of the key-value cache, by layer


class Starts:
    """The record of one source, asked for in one precision. Look before the source is opened: what changes from then on is noticed."""

    def __init__(self, cache_dir: Path, source: str | Path, quantization: str | None, backend: str, machine: Machine) -> None:
        path = Path(source).expanduser()
        key = json.dumps([os.path.realpath(path), quantization, backend])
        self._file = cache_dir / "starts" / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".json")
        self._made_by = [RECORD, __version__, layouts.LAYOUT, RECIPE, machine.fingerprint, meaning_of_presets()]
        try:
            self._files = _identity(path)
        except OSError:  # a hub id: only the hub knows what it means today
            self._files = []

    def recall(self) -> Start | None:
        """What is known, or None."""
        try:
            known = json.loads(self._file.read_bytes())
            if not self._files or known["made_by"] != self._made_by or known["files"] != self._files:
                return None
            return Start(**known["start"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def remember(self, start: Start) -> None:
        """Best effort: a cache that cannot be written only costs time."""
        if not self._files or any(time.time() - changed / 1e9 < SETTLED_SECONDS for _, _, changed, _ in self._files):
            return
        import tempfile

        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._file.parent, prefix=".start-", delete=False) as file:
                json.dump({"made_by": self._made_by, "files": self._files, "start": asdict(start)}, file)
            os.replace(file.name, self._file)
        except OSError:
            return


def _identity(path: Path) -> list[list[Any]]:
    """[path, size, modification time in ns, inode] of the file, or of every file in the folder and one level below it."""
    return [[real, (status := os.stat(real)).st_size, status.st_mtime_ns, status.st_ino] for real in map(os.path.realpath, _files(path))]


def _files(path: Path) -> Iterable[str]:
    if not path.is_dir():
        return [str(path)]
    with os.scandir(path) as entries:
        inside = sorted((entry.path, entry.is_dir()) for entry in entries)
    return [name for top, folder in inside for name in (sorted(e.path for e in os.scandir(top) if e.is_file()) if folder else [top])]
