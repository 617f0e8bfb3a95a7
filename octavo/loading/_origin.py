"""Where a model's weights come from: its source, or the copy in the cache that an earlier start made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import layouts
from ..checkpoints import Checkpoint, open_checkpoint
from ..checkpoints.octavo import CODEC as COPIES
from ..checkpoints.octavo import OctavoCheckpoint
from ..errors import CheckpointError, OctavoError
from ..layers import Declared, declare
from ..machine import Machine
from ..models import Decoder, Rounding, read_model
from ..policy import Dispatch
from ..schemes import Choice, Plan
from ._assign import Job, assign, find
from ._choices import choose_plan, plan_as_stored
from ._kept import Kept, check_copy
from ._starts import Start, Starts
from ._stream import read_rows
from ._tuning import static_scales


@dataclass(frozen=True)
class Origin:
    """checkpoint   weights and tokenizer are read from it: the source, or its copy
    config          Hugging Face's, of the source
    codec, stored_bytes   of the source
    found           name here -> name in the checkpoint
    damage          why a copy was set aside
    copied          the checkpoint is a copy from the cache
    kept, starts    the places of a copy and of its record in the cache, where there are any
    statics         stored scales of the key-value cache, (keys, values) of each layer, where there are
    """

    checkpoint: Checkpoint
    config: Mapping[str, Any]
    codec: str
    stored_bytes: int
    choice: Choice
    model: Decoder
    declared: Declared
    found: Mapping[str, str]
    jobs: list[Job]
    notes: list[str]
    damage: str = ""
    copied: bool = False
    kept: Kept | None = None
    starts: Starts | None = None
    statics: Sequence[tuple[float, float]] | None = None

    def remember(self) -> None:
        """The copy is there and good: let the next start go straight to it."""
        if self.kept is not None and self.starts is not None:
            self.starts.remember(Start(self.kept.key, self.kept.manifest, self.choice.plan.to_json(), self.choice.reason, self.codec, self.stored_bytes,
                                       self.notes, self.statics))


@dataclass(frozen=True)
class Search:
    """What to look for: arguments of `load`, and what the machine offers. cache_dir None: neither look there nor write."""

    source: str | Path
    quantization: str | None
    max_model_len: int | None
    revision: str | None
    cache_dir: Path | None
    machine: Machine
    dispatch: Dispatch
    backend: str
    allow_pickle: bool = False
    panels: bool = True                          # the backend takes packed weights, which a copy in the cache is made of
    capability: tuple[int, int] | None = None    # of the GPU that it runs on

    def origin(self) -> Origin:
        """Raises what opening, describing and planning raise; a record or a copy that is damaged only costs its use."""
        if self.cache_dir is None:
            return self._opened(None)
        starts = Starts(self.cache_dir, self.source, self.quantization, self.backend, self.machine)
        start = starts.recall()
        if start is not None:
            try:
                return self._recalled(start, self.cache_dir / "models" / start.copy)
            except OctavoError:
                pass  # whatever is wrong with the copy, the source is there and gets to say it
        return self._opened(starts)

    def _recalled(self, start: Start, folder: Path) -> Origin:
        copy = COPIES.open(folder)
        choice = Choice(Plan.from_json(start.plan), start.reason)
        if copy.manifest != start.manifest:
            raise CheckpointError("is not the copy that its record names", where=str(folder))
        model, declared, found = self._fit(copy, choice.plan)
        jobs, _ = assign(found, declared.wanted, copy.tensors, choice.plan, self.dispatch, copy.input_scales())
        check_copy(copy, jobs, declared.wanted)
        return Origin(copy, copy.source_config, start.codec, start.stored_bytes, choice, model, declared, found, jobs, start.notes, copied=True,
                      statics=start.statics)

    def _opened(self, starts: Starts | None) -> Origin:
        checkpoint = open_checkpoint(self.source, revision=self.revision, allow_pickle=self.allow_pickle)
        choice = choose_plan(self.quantization, checkpoint, self.machine, self.capability)
        model, declared, found = self._fit(checkpoint, choice.plan)
        if self.quantization is None and not isinstance(checkpoint, OctavoCheckpoint):
            plan = plan_as_stored(checkpoint, found, [want.name for want in declared.wanted.values() if want.uses])
            choice = choice if plan is None else replace(choice, plan=plan)
        jobs, notes = assign(found, declared.wanted, checkpoint.tensors, choice.plan, self.dispatch, getattr(checkpoint, "input_scales", dict)())
        notes = [*checkpoint.notes, *notes]
        stored = sum(info.nbytes for info in checkpoint.tensors.values())
        origin = Origin(checkpoint, checkpoint.config, checkpoint.codec, stored, choice, model, declared, found, jobs, notes,
                        statics=static_scales(getattr(checkpoint, "cache_scales", dict)(), len(model.head_dims)))
        packable = self.panels and all(layouts.why_not(job.kept) is None for job in jobs)
        if self.cache_dir is None or not packable or isinstance(checkpoint, OctavoCheckpoint):
            return origin
        kept = Kept(self.cache_dir, checkpoint, choice.plan, jobs, declared.wanted)
        copy, damage = kept.open()
        changes: dict[str, Any] = {"kept": kept, "starts": starts, "damage": damage}
        if copy is not None:
            changes |= {"checkpoint": copy, "found": {name: name for name in found}, "copied": True}
        return Origin(**{**vars(origin), **changes})

    def _fit(self, checkpoint: Checkpoint, plan: Plan) -> tuple[Decoder, Declared, dict[str, str]]:
        """(architecture, its tensors, where they are). A head that is stored beside the embedding it is said to share is used if it differs."""
        rounding: Rounding = "fp32" if plan.default.activation.format == "fp32" else "bf16"
        model = read_model(checkpoint.config, max_model_len=self.max_model_len, rounding=rounding)
        names = {model.canonical(name): name for name in checkpoint.tensors}
        if model.tied and {"lm_head.weight", "model.embed_tokens.weight"} <= names.keys():
            if _same(checkpoint, names["lm_head.weight"], names["model.embed_tokens.weight"]):
                model.ignored = (*model.ignored, "lm_head.weight")
            else:
                model = read_model(checkpoint.config, max_model_len=self.max_model_len, rounding=rounding, tied=False)
        declared = declare(model.describe)
        return model, declared, find(checkpoint, model, declared.wanted)


def open_model(checkpoint: Checkpoint, max_model_len: int | None = None) -> tuple[Checkpoint, Decoder, dict[str, str]]:
    """(the checkpoint, the architecture that its config describes, name there -> name in the checkpoint), for those who read weights themselves.

    max_model_len bounds what tables of positions are made for. Raises what reading a config, and CheckpointError for tensors that do not fit it.
    """
    model = read_model(checkpoint.config)
    if max_model_len is not None:
        model = read_model(checkpoint.config, max_model_len=min(max_model_len, model.natural_len))
    names = {model.canonical(name): name for name in checkpoint.tensors}
    if model.tied and {"lm_head.weight", "model.embed_tokens.weight"} <= names.keys():
        model.ignored = (*model.ignored, "lm_head.weight")
    return checkpoint, model, find(checkpoint, model, declare(model.describe).wanted)


def _same(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors hold the same numbers; looks at a few rows at a time."""
    shape = checkpoint.tensors[one].shape
    if shape != checkpoint.tensors[other].shape or len(shape) != 2:
        return False
    specs = [checkpoint.tensors[name].spec for name in (one, other)]
    if specs[0] != specs[1] and any(spec is not None and spec.granularity in ("tensor", "block") for spec in specs):
        return False  # their pieces would not be the same; two weights are right whatever they hold
    pairs = zip(read_rows(checkpoint, one), read_rows(checkpoint, other), strict=True)
    equal = all(np.array_equal(a.dequantize(), b.dequantize()) for (_, a), (_, b) in pairs)
    checkpoint.release(one)
    checkpoint.release(other)
    return equal
