"""The receipt of a model that was quantized while it loaded: measured once, on a few hundred tokens, and kept beside its copy in the cache."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoints import open_checkpoint
from ..errors import CapacityError, OctavoError, UsageError
from ..loading import LoadedModel, Progress, load
from ..machine import detect
from ..schemes import cache_name
from .earlier import conclude, earlier_loss
from .intervals import finite
from .own_text import OWN_TEXT
from .receipt import Receipt, digests, is_of, not_measured, read_receipt
from .receipt_of import Check, measure
from .weights import loaded_errors

SHARE = 0.5  # of the free memory that the original may take for a while


@dataclass(frozen=True)
class Online:
    """loaded     the model that is served; its engine may be running
    source, against   names of what it was loaded from, and of its original (None: the source as stored, if that is one; see earlier.py)
    changed       whether a precision was asked for, of weights or cache; else the model is served as it is stored
    """

    loaded: LoadedModel
    source: str
    changed: bool
    against: str | None = None
    cache_dir: Path | None = None
    allow_pickle: bool = False

    def kept(self, *, sure: bool = False) -> Receipt | None:
        """What is known without measuring, or None. `sure` reads the files to see that they are the ones that the receipt is of, and takes nothing for
        known that leaves out what was lost before."""
        if not self.changed and self.against is None:
            return self.before
        receipt = self._remembered(sure)
        if receipt is None and sure and self.before.status == "not measured":
            receipt = self._blank()
            receipt.reason = self.before.reason
        return receipt

    def measure(self, check: Check = lambda: None, *, threads: int | None = None, original: LoadedModel | None = None) -> Receipt:
        """Compare with the original (None: load it), keep the receipt. Never fails: what went wrong is its reason. `check` may raise to end it."""
        receipt = self._blank()
        try:
            before = self.before
            original = original or self.open_original(check, threads=threads)
            receipt.original["plan"] = str(original.plan)
            receipt.weights = {name: {"weight": finite(error)} for name, error in loaded_errors(original, self.loaded, check).items()}
            conclude(receipt, before, measure(original, self.loaded.twin(threads), check=check, threads=threads), OWN_TEXT)
            receipt.original["sha256"] = digests(self._open(self._original), self.cache_dir)
            if self._file is not None:
                receipt.result["sha256"] = digests(open_checkpoint(self._file.parent), self.cache_dir)
                receipt.write(self._file)
        except OctavoError as error:
            if not receipt.text:  # one that cannot be kept is a receipt all the same
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

    def only_original(self) -> None:
        """Raises UsageError where what there is to compare with has itself lost something: it is no original."""
        if self.before.status != "exact":
            raise UsageError(f"{self.source} is no original to compare with: it came quantized", where="--against", remedy="name the model that it was made of")

    @cached_property
    def before(self) -> Receipt:
        """What the model that is compared with had lost before (see earlier.py); of an original that was named: nothing."""
        if self.against is not None:
            return Receipt("exact")
        try:
            return earlier_loss(self._open(self.source), self.cache_dir)
        except OctavoError as error:
            return Receipt("not measured", not_measured(error))

    def _blank(self) -> Receipt:
        report = self.loaded.report
        settings = {"plan": self.loaded.plan.to_json(), **({"kv_cache": report.cache_search} if report.cache_search else {})}
        return Receipt("not measured", original={"name": self._original}, settings=settings, result=self._which)

    @property
    def _which(self) -> dict[str, Any]:
        """What tells two models of one source apart. The balance of a quantized cache is measured for the context (see loading/_tuning.py)."""
        return {"name": self.loaded.name, "plan": str(self.loaded.plan), "cache": cache_name(self.loaded.cache_spec), "context": self.loaded.max_model_len}

    def _remembered(self, sure: bool) -> Receipt | None:
        if self._file is None or (receipt := read_receipt(self._file)) is None:
            return None
        same = (receipt.text.get("sha256") == OWN_TEXT.sha256 and receipt.versions.get("octavo") == __version__
                and receipt.original.get("name") == self._original and {name: receipt.result.get(name) for name in self._which} == self._which)
        try:
            return receipt if same and (not sure or self._holds(receipt)) else None
        except OctavoError:
            return None

    def _holds(self, receipt: Receipt) -> bool:
        """Whether all of it is still so: the copy, the original, and what that had lost before."""
        assert self._file is not None
        known = receipt.loss.get("steps", {}).get("earlier") if receipt.status == "measured" else None
        if receipt.status != "measured" or known != (self.before.loss["kl"]["mean"] if self.before.status == "measured" else None):
            return False
        return (self.before.status != "not measured" and receipt.original.get("sha256") == digests(self._open(self._original), self.cache_dir)
                and is_of(receipt, open_checkpoint(self._file.parent), self.cache_dir))

    def _open(self, name: str) -> Any:
        return open_checkpoint(name, allow_pickle=self.allow_pickle)

    @property
    def _original(self) -> str:
        return self.against or self.source

    @property
    def _file(self) -> Path | None:
        """Beside the copy, where a model with another cache lies too."""
        copy, spec = self.loaded.report.copy, self.loaded.cache_spec
        key = hashlib.sha256(f"{cache_name(spec)} {self.loaded.max_model_len}".encode()).hexdigest()[:8]
        return Path(copy) / f"octavo-receipt-{spec.format}-{key}.json" if copy else None


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
