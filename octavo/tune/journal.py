"""Journal: what was measured so far, on disk after every question, so that an interrupted search goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..policy import difference, save
from .race import Samples

FORMAT = "octavo tune journal 1"


@dataclass
class Record:
    """Samples of one question: those of the race, and the fresh ones of the confirmation of `leader`."""

    arms: list[str]
    rejected: dict[str, str] = field(default_factory=dict)
    race: Samples = field(default_factory=Samples)
    leader: str = ""
    confirm: Samples = field(default_factory=Samples)
    checked: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"arms": self.arms, "checked": self.checked, "rejected": self.rejected, "race": self.race.to_json(), "leader": self.leader,
                "confirm": self.confirm.to_json()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Record:
        return Record([str(arm) for arm in data["arms"]], {str(k): str(v) for k, v in data["rejected"].items()}, Samples.from_json(data["race"]),
                      str(data["leader"]), Samples.from_json(data["confirm"]), bool(data["checked"]))


class Journal:
    """Records by the key of their question. `path` None: nothing is kept. `note` says what became of the file that was there."""

    def __init__(self, path: Path | None, fingerprint: Mapping[str, Any]) -> None:
        self.path, self.fingerprint, self.note = path, dict(fingerprint), ""
        self.records: dict[str, Record] = {}
        if path is not None and path.exists():
            self.note = self._read(path)

    def _read(self, path: Path) -> str:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                return f"{path.name} is no journal of this version and is not used"
            reason = difference(data["fingerprint"], self.fingerprint)
            if reason is not None:
                return f"what an interrupted search left is stale and not used: {reason}"
            self.records = {str(key): Record.from_json(record) for key, record in data["questions"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{path.name} cannot be read and is not used: {error!r}"
        return f"going on from an interrupted search: {len(self.records)} questions were measured, at least in part"

    def record(self, key: str, arms: list[str]) -> Record:
        """The record of a question; a new one when it was never asked, or had other candidates."""
        known = self.records.get(key)
        if known is None or known.arms != arms:
            known = self.records[key] = Record(list(arms))
        return known

    def write(self) -> None:
        if self.path is not None:
            save(self.path, {"format": FORMAT, "fingerprint": self.fingerprint, "questions": {k: r.to_json() for k, r in self.records.items()}})

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
