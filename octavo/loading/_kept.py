"""The cache of quantized models: ordinary octavo checkpoints, found by what they were made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .. import layouts
from ..checkpoints import Checkpoint, open_checkpoint
from ..checkpoints.octavo import OctavoCheckpoint, OctavoWriter
from ..errors import CheckpointError, OctavoError
from ..layers import Wanted
from ..layouts import Packed
from ..schemes import Plan
from ..text.mapped import FILE, MappedTokenizer
from ._assign import Job

RECIPE = 2  # changes when the same source and plan give other numbers


class Kept:
    """The place of one quantized model in the cache."""

    def __init__(self, cache_dir: Path, checkpoint: Checkpoint, plan: Plan, jobs: Sequence[Job], wanted: Mapping[str, Wanted]) -> None:
        self.jobs, self.wanted = jobs, wanted
        self.manifest: dict[str, Any] = {
            "content": checkpoint.content_key(cache_dir), "plan": plan.to_json(), "layout": layouts.LAYOUT, "recipe": RECIPE,
            "weights": hashlib.sha256(json.dumps([[j.name, j.shape, asdict(j.asked), asdict(j.kept)] for j in jobs]).encode()).hexdigest(),
        }
        self.key = hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = cache_dir / "models" / self.key

    def open(self) -> tuple[Checkpoint | None, str]:
        """(the copy, or None when there is none, a note). A copy that is damaged is removed, and the note says so."""
        if not self.folder.is_dir():
            return None, ""
        try:
            found = open_checkpoint(self.folder)
            if not isinstance(found, OctavoCheckpoint) or found.manifest != self.manifest:
                raise CheckpointError("is not the copy that its name says", where=str(self.folder))
            check_copy(found, self.jobs, self.wanted)
        except OctavoError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            return None, f"the copy in the cache was damaged and is made again: {error}"
        return found, ""

    def writer(self, checkpoint: Checkpoint, plan: Plan) -> KeptWriter:
        return KeptWriter(self, checkpoint, plan)


def check_copy(copy: OctavoCheckpoint, jobs: Sequence[Job], wanted: Mapping[str, Wanted]) -> None:
    """Raises CheckpointError unless every tensor is there as it was written."""
    for job in jobs:
        packed = copy.packed(job.name) if job.name in copy.tensors else None
        if packed is None or not fits(packed, job):
            raise CheckpointError(f"tensor {job.name!r} is not packed as expected", where=str(copy.path))
    for want in wanted.values():
        if not want.uses and tuple(copy.info(want.name).shape) != want.shape:
            raise CheckpointError(f"tensor {want.name!r} has another shape", where=str(copy.path))


def mapped_tokenizer(copy: Checkpoint) -> dict[str, Any]:
    """See Checkpoint.tokenizer_files; the tokenizer's tables are mapped where that is possible, and written beside the copy by the first who asks."""
    assert isinstance(copy, OctavoCheckpoint)
    file = copy.path / FILE
    tokenizer: Any = MappedTokenizer.open(file, copy.tokenizer)
    if tokenizer is None:
        tokenizer = copy.tokenizer()
        if not file.is_file() or file.stat().st_size:  # an empty one says that there can be none
            with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
                MappedTokenizer.write(file, tokenizer)
    return {"tokenizer": tokenizer, **copy.tokenizer_settings()}


class KeptWriter:
    """Writes a copy while the model loads. A disk that refuses costs the copy, not the load: `note` then says why."""

    def __init__(self, kept: Kept, checkpoint: Checkpoint, plan: Plan) -> None:
        self.note = ""
        self._writer: OctavoWriter | None = None
        config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
        try:
            self._writer = OctavoWriter(kept.folder, config, plan.to_json(), kept.manifest)
        except CheckpointError as error:
            self._give_up(error)

    def __enter__(self) -> KeptWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.abort()

    def weight(self, name: str, packed: Packed, input_scale: float) -> None:
        if self._writer is not None:
            try:
                self._writer.add_packed(name, packed, input_scale)
            except CheckpointError as error:
                self._give_up(error)

    def vector(self, name: str, values: np.ndarray) -> None:
        if self._writer is not None:
            self._writer.add_array(name, values)

    def finish(self, tokenizer_files: dict[str, Any]) -> None:
        if self._writer is not None:
            try:
                self._writer.finish(tokenizer_files)
                self._writer = None
            except CheckpointError as error:
                self._give_up(error)

    def _give_up(self, error: CheckpointError) -> None:
        self.note = f"nothing was kept for the next start: {error}"
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


def fits(packed: Packed, job: Job) -> bool:
    """Whether a blob is this weight in the precision wanted; wider scales count as the same."""
    spec = packed.meta.spec
    wanted = replace(job.kept, scale_format=spec.scale_format)
    turned = packed.rotation == job.rotation or not job.rotation
    return turned and (packed.meta.n, packed.meta.k) == job.shape and spec == wanted and spec.scale_format in (job.kept.scale_format, "fp32")
