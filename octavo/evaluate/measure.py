"""evaluate(): the numbers of one model, or of a model against its original, on one text."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import UsageError
from ..quality import Comparison, EvaluationText, Perplexity, perplexity, summarize, windows_of
from ..quality.pair import CONTEXT, Loader, OnProgress, compare_pair, who
from ..quality.parts import PartLoss, kl_by_part
from .long import LongContext, long_context

if TYPE_CHECKING:
    from ..loading import LoadedModel
    from .harness import TaskScores

Tasks = Callable[["LoadedModel", Callable[[int], None]], "TaskScores"]
PART_WINDOWS, PART_CONTEXT = 4, 128  # KL by layer takes a forward of these for every layer


@dataclass(frozen=True)
class Evidence:
    """What was measured beside the text itself. `parts`, `long`: with which windows; see the modules of these names."""

    parts: Sequence[PartLoss] = ()
    long: Sequence[LongContext] = ()
    notes: Sequence[str] = ()


@dataclass
class Evaluation:
    """model, original: name, plan and cache of each. comparison: None where nothing was compared."""

    model: dict[str, Any]
    original: dict[str, Any] | None
    text: dict[str, Any]
    perplexity: Perplexity | None = None
    comparison: Comparison | None = None
    evidence: Evidence = field(default_factory=Evidence)
    tasks: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {**self.model, "octavo": __version__, "numpy": np.__version__, "machine": platform.machine()}
        if self.text:
            found |= {"text": self.text["name"], "text_sha256": self.text["sha256"]}
        if self.comparison is None and (one := self.perplexity) is not None:
            found |= {"perplexity": one.estimate.to_json(), "tokens": one.tokens, "windows": one.windows, "context": self.text["context"]}
        elif self.comparison is None and self.original is not None:
            found["original"] = self.original
        if self.comparison is not None:
            found |= self.comparison.to_json()
            found |= {"original": self.original, "kl_by_position": [
                {"from": start, "to": stop, **kl.to_json()} for start, stop, kl in self.comparison.kl_by_position()]}
        if self.evidence.parts:
            found["kl_by_layer"] = [part.to_json() for part in self.evidence.parts]
        if self.evidence.long:
            found["long"] = [one.to_json() for one in self.evidence.long]
        if self.evidence.notes:
            found["notes"] = list(self.evidence.notes)
        return found | ({"tasks": self.tasks} if self.tasks else {})


def evaluate_tasks(load_model: Loader, load_original: Loader | None, tasks: Tasks, on_progress: OnProgress | None = None) -> Evaluation:
    """Scores of tasks (see harness.py), paired with the original's where there is one; the two models are loaded one after the other."""
    from .harness import compare_tasks

    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress("requests", done, 0)

    before_who, before = None, None
    if load_original is not None:
        original = load_original()
        before_who, before = who(original), tasks(original, step)
        del original
    model = load_model()
    return Evaluation(who(model), before_who, {}, tasks=compare_tasks(tasks(model, step), before))


def evaluate(load_model: Loader, load_original: Loader | None, text: EvaluationText, *, context: int | None = None, windows: int | None = None,
             by_layer: bool = False, lengths: Sequence[int] = (), long_windows: int | None = None, one_at_a_time: bool = False,
             on_progress: OnProgress | None = None) -> Evaluation:
    """Perplexity of a model on a text and, with an original, what it has lost against it.

    The models are loaded here, the original first. Where both do not fit, or `one_at_a_time` says so, the original's logits go to a temporary file and
    it is gone before the model comes; KL by layer and the long contexts need both, and a note says that they were left out.
    context: None takes CONTEXT tokens, or what the models take if that is less. long_windows: of each of `lengths` (None: see `windows_at`).
    `on_progress(stage, done, total)`. Raises what loading raises, UsageError for a text that is too short, a context that a model does not take, and
    `by_layer` without an original, CapacityError.
    """
    tell = on_progress or (lambda stage, done, total: None)
    if by_layer and load_original is None:
        raise UsageError("without an original no layer has lost anything", where="by_layer", remedy="give the original, too")
    if load_original is None:
        model = load_model()
        context = context or min(CONTEXT, model.max_model_len)
        one = perplexity(model, text.documents, context=context, windows=windows, on_window=lambda done, total, _: tell("perplexity", done, total))
        alone = long_context(model, None, text.documents, lengths, windows=long_windows, on_length=lambda length: tell(f"{length} tokens", 0, 1))
        return Evaluation(who(model), None, _which(text, context), one, evidence=Evidence(long=alone))
    pair = compare_pair(load_model, load_original, text, context=context, windows=windows, one_at_a_time=one_at_a_time, on_progress=on_progress)
    notes, comparison, original, model = pair.notes, pair.comparison, pair.original, pair.model
    parts: list[PartLoss] = []
    long: list[LongContext] = []
    if original is not None:
        if by_layer:
            few = windows_of(original, text.documents, context=min(pair.context, PART_CONTEXT), windows=PART_WINDOWS)
            parts = kl_by_part(original, model, few, on_part=lambda done, total: tell("layer by layer", done, total))
        long = long_context(model, original, text.documents, lengths, windows=long_windows, on_length=lambda length: tell(f"{length} tokens", 0, 1))
    elif by_layer or lengths:
        notes.append("KL by layer and long contexts need both models in memory: not measured")
    return Evaluation(pair.who, pair.original_who, _which(text, pair.context), summarize(comparison.rows.model, pair.windows), comparison,
                      Evidence(parts, long, notes))


def _which(text: EvaluationText, context: int) -> dict[str, Any]:
    return {"name": text.name, "sha256": text.sha256, "context": context}
