"""Kept: what a mixed search has found so far, in a hidden folder beside its target, so that a search that was killed goes on, and the target appears whole
or not at all.

`.NAME.octavo-search/` holds `header.json` (what everything in it belongs to; what was there of another search is removed), `sensitivities.json`,
`caches.json`, `trials.json` (a record for each plan that was tried) and, for the plans that may still be wanted, a folder with the checkpoint as it will stand.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...checkpoints.writing import write_synced
from ...errors import CheckpointError
from ...schemes import Scheme
from .caches import Caches
from .sensitivity import Sensitivity

SUFFIX = ".octavo-search"


class Kept:
    """about   names all that decides about sensitivities and trials; JSON. Raises CheckpointError where the disk refuses."""

    def __init__(self, target: Path, about: Mapping[str, Any]) -> None:
        self.target, self.folder = target, target.parent / f".{target.name}{SUFFIX}"
        header = json.dumps(about, sort_keys=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            known = self.folder / "header.json"
            if not (known.is_file() and known.read_bytes() == header.encode()):
                shutil.rmtree(self.folder)
                self.folder.mkdir()
                write_synced(known, header.encode())
        except OSError as error:
            raise self._refused(error) from None

    # Sensitivities ---------------------------------------------------------------------------------------------------------------

    def sensitivities(self, wanted: Mapping[str, Sequence[Scheme]]) -> dict[str, Sensitivity] | None:
        """What `keep_sensitivities` was given, or None."""
        found = self._read("sensitivities.json")
        if found is None or found.keys() != wanted.keys() or any(found[name]["schemes"] != [str(s) for s in schemes] for name, schemes in wanted.items()):
            return None
        return {name: Sensitivity(tuple(schemes), np.array(found[name]["kl"]), np.array(found[name]["inputs"])) for name, schemes in wanted.items()}

    def keep_sensitivities(self, found: Mapping[str, Sensitivity]) -> None:
        self._write("sensitivities.json", {name: {"schemes": [str(scheme) for scheme in one.schemes], "kl": one.kl.tolist(), "inputs": one.inputs.tolist()}
                                           for name, one in found.items()})

    def caches(self, names: Sequence[str], context: int, together: bool) -> Caches | None:
        """What `keep_caches` was given, or None."""
        found = self._read("caches.json")
        return None if found is None or found["names"] != list(names) else Caches.of(found, context, together)

    def keep_caches(self, found: Caches) -> None:
        self._write("caches.json", found.to_json())

    # Trials ----------------------------------------------------------------------------------------------------------------------

    def trial(self, plan: str) -> dict[str, Any] | None:
        """What was found of a plan."""
        found: dict[str, Any] | None = (self._read("trials.json") or {}).get(plan)
        return found

    def keep_trial(self, plan: str, record: Mapping[str, Any]) -> None:
        self._write("trials.json", {**(self._read("trials.json") or {}), plan: record})

    def place(self, plan: str) -> Path:
        """Where the checkpoint of a plan is made: under the target's name, in a folder of its own."""
        return self.folder / hashlib.sha256(plan.encode()).hexdigest()[:16] / self.target.name

    def leave_only(self, plans: Sequence[str]) -> None:
        """Removes the checkpoints of all other plans; records stay."""
        stay = {self.place(plan).parent.name for plan in plans}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in stay:
                shutil.rmtree(path, ignore_errors=True)

    def publish(self, plan: str) -> None:
        """Give the checkpoint of a plan, and what lies beside it, their names, the checkpoint last; and remove the rest. Replaces what stands there."""
        made = self.place(plan)
        try:
            for path in sorted(made.parent.glob("[!.]*"), key=lambda path: (path == made, path.name)):
                name = self.target.parent / path.name
                if name.is_dir() and not name.is_symlink():
                    os.rename(name, self.folder / "old")  # a folder in the place of which another one comes
                os.replace(path, name)
        except OSError as error:
            raise self._refused(error) from None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / name).read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        try:
            write_synced(self.folder / f"{name}.new", json.dumps(content, indent=1).encode())
            os.replace(self.folder / f"{name}.new", self.folder / name)
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"cannot be written: {error.strerror or error}", where=str(self.folder), remedy="free space, or choose another place")
