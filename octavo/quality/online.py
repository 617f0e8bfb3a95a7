"""The receipt of a model that was quantized while it loaded: measured once, on a few hundred tokens, and kept beside its copy in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoints import open_checkpoint
from ..errors import CapacityError, CheckpointError, OctavoError
from ..loading import LoadedModel, Progress, load
from ..machine import detect
from .own_text import OWN_TEXT
from .receipt import Receipt, beside, not_measured, read_receipt
from .receipt_of import Check, digests, is_of, measure

SHARE = 0.5  # of the free memory that the original may take for a while


@dataclass(frozen=True)
class Online:
    """loaded     the model that is served; its engine may be running
    source, against   names of what it was loaded from, and of its original (None: the source as stored)
    changed       whether a precision was asked for, of weights or cache; else the model is served as it is stored
    """

    loaded: LoadedModel
    source: str
    changed: bool
    against: str | None = None
    cache_dir: Path | None = None
    allow_pickle: bool = False

    def kept(self, *, sure: bool = False) -> Receipt | None:
        """What is known without measuring, or None. `sure` reads the files to see that they are the ones that the receipt is of."""
        if not self.changed and self.against is None:
            return self._as_stored()
        if self._file is None or (receipt := read_receipt(self._file)) is None:
            return None
        same = (receipt.status == "measured" and receipt.text.get("sha256") == OWN_TEXT.sha256 and receipt.versions.get("octavo") == __version__
                and receipt.original.get("name") == self._original and receipt.result.get("plan") == str(self.loaded.plan))
        try:
            return receipt if same and (not sure or is_of(receipt, open_checkpoint(self._file.parent), self.cache_dir)) else None
        except OctavoError:
            return None

    def measure(self, check: Check = lambda: None, *, threads: int | None = None) -> Receipt:
        """Load the original, compare, keep the receipt. Never fails: what went wrong is its reason. `check` may raise to end it."""
        receipt = Receipt("not measured", original={"name": self._original}, settings={"plan": self.loaded.plan.to_json()},
                          result={"name": self.loaded.name, "plan": str(self.loaded.plan), "cache": self.loaded.cache_spec.format})
        try:
            original = self.open_original(check, threads=threads)
            receipt.original["plan"] = str(original.plan)
            receipt.took(measure(original, self.loaded.twin(threads), check=check, threads=threads), OWN_TEXT)
            if self._file is not None:
                receipt.result["sha256"] = digests(open_checkpoint(self._file.parent), self.cache_dir)
                receipt.write(self._file)
        except CheckpointError as error:
            if receipt.status != "measured":  # a receipt that cannot be kept is one all the same
                receipt.reason = not_measured(error)
        except OctavoError as error:
            receipt.reason = not_measured(error)
        return receipt

    def open_original(self, check: Check = lambda: None, *, threads: int | None = None, keep: bool = False) -> LoadedModel:
        """The original, loaded beside the model. keep: in the cache too, so that its weights are mapped the next time. Raises OctavoError, CapacityError
        where it would take too much of what is free."""
        def once() -> LoadedModel:
            return load(self._original, use_cache=keep, cache_dir=self.cache_dir if keep else None, threads=threads,
                        max_model_len=min(self.loaded.max_model_len, 1024), allow_pickle=self.allow_pickle, on_progress=_modest(check))

        original = once()
        return once() if original.report.copy and not original.report.cache_hit else original

    def _as_stored(self) -> Receipt:
        path = Path(self.source).expanduser()
        receipt = read_receipt(beside(path)) if path.exists() else None
        if receipt is not None:
            try:
                if is_of(receipt, open_checkpoint(path, allow_pickle=self.allow_pickle), self.cache_dir):
                    return receipt
            except OctavoError as error:
                return Receipt("not measured", not_measured(error))
            return Receipt("not measured", "the receipt beside the files is of other files: they were changed since it was written")
        plan = self.loaded.plan
        if any(scheme is not None and (scheme.weight.quantized or scheme.activation.quantized) for scheme in
               (plan.default, *(scheme for _, scheme in plan.overrides))):
            return Receipt("not measured", "it came quantized and without a receipt; name its original with --against")
        return Receipt("exact", "served as it is stored")

    @property
    def _original(self) -> str:
        return self.against or self.source

    @property
    def _file(self) -> Path | None:
        """Beside the copy; a model with another cache format lies in the same place."""
        copy = self.loaded.report.copy
        return Path(copy) / f"octavo-receipt-{self.loaded.cache_spec.format}.json" if copy else None


def _modest(check: Check) -> Callable[[Progress], None]:
    """Ends a load that would take too much of what is free, since the model beside it is serving."""
    free = detect(None).memory_available

    def progress(now: Progress) -> None:
        check()
        needed = now.report.predicted_peak - now.report.predicted["base"]
        if needed > SHARE * free:
            raise CapacityError(f"the original takes {math.ceil(needed / 1e6)} MB, more than half of the {free / 1e6:.0f} MB that are free", where="memory")

    return progress


def as_json(receipt: Receipt | None, state: str) -> dict[str, Any]:
    """For /v1/quality."""
    return {"object": "quality", "state": state, "receipt": None if receipt is None else receipt.to_json(),
            "summary": state if receipt is None else receipt.line}
