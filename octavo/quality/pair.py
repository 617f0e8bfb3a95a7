"""A model and its original on one text, both loaded here: side by side, or one after the other where there is no memory for two."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CapacityError, UsageError
from ..schemes import cache_name
from .comparison import Comparison, compare
from .perplexity import Windows, windows_of
from .recording import record
from .texts import EvaluationText

if TYPE_CHECKING:
    from ..loading import LoadedModel

Loader = Callable[[], "LoadedModel"]
OnProgress = Callable[[str, int, int], None]
CONTEXT = 1024  # tokens of a window, where nobody says otherwise


@dataclass
class Pair:
    """model      still loaded
    original   still loaded where both fit into memory; else None
    who, original_who   name, plan and cache of each
    """

    model: LoadedModel
    original: LoadedModel | None
    who: dict[str, Any]
    original_who: dict[str, Any]
    comparison: Comparison
    context: int
    notes: list[str] = field(default_factory=list)

    @property
    def windows(self) -> Windows:
        return self.comparison.windows


def compare_pair(load_model: Loader, load_original: Loader, text: EvaluationText, *, context: int | None = None, usual: int = CONTEXT,
                 windows: int | None = None, one_at_a_time: bool = False, on_progress: OnProgress | None = None) -> Pair:
    """Load the original, then the model, and compare them on at most `windows` windows of `context` tokens (None: `usual`, or what both take if that is
    less).

    Where both do not fit, or `one_at_a_time` says so, the original's logits go to a temporary file and it is gone before the model comes; if that then
    takes fewer tokens than the original, the original comes a second time. `on_progress(stage, done, total)`. Raises what loading raises, UsageError for
    a text that is too short, a context that one of the two does not take or models of different tokens, CapacityError.
    """
    tell = on_progress or (lambda stage, done, total: None)
    original = load_original()
    before, notes = who(original), list[str]()
    takes = Takes.of(original)
    model = None if one_at_a_time else _beside(load_model, notes)
    if model is not None:
        takes.check(model, context)
        width = context or min(usual, takes.length, model.max_model_len)
        cuts = windows_of(original, text.documents, context=width, windows=windows)
        _check_tokens(model, text, cuts, width, windows)
        comparison = compare(original, model, cuts, on_rows=lambda done, total: tell("comparing", done, total))
        return Pair(model, original, who(model), before, comparison, width, notes)
    width = context or min(usual, takes.length)
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        cuts = windows_of(original, text.documents, context=width, windows=windows)
        recording = record(original, cuts, Path(folder) / "logits.npy", on_rows=lambda done, total: tell("original", done, total))
        del original
        model = load_model()
        takes.check(model, context)
        if width <= model.max_model_len:
            _check_tokens(model, text, cuts, width, windows)
            comparison = compare(recording, model, cuts, on_rows=lambda done, total: tell("comparing", done, total))
            return Pair(model, None, who(model), before, comparison, width, notes)
    width = model.max_model_len
    del model
    again = compare_pair(load_model, load_original, text, context=width, windows=windows, one_at_a_time=True, on_progress=on_progress)
    again.notes[:0] = notes
    return again


@dataclass(frozen=True)
class Takes:
    """What a model that may be gone by now takes: its name, tokens of context, and words of its vocabulary."""

    name: str
    length: int
    vocabulary: int

    @classmethod
    def of(cls, model: LoadedModel) -> Takes:
        return cls(model.name, model.max_model_len, model.vocab_size)

    def check(self, model: LoadedModel, context: int | None) -> None:
        """Raises UsageError where the two cannot be compared, or not on windows of `context` tokens."""
        if self.vocabulary != model.vocab_size:
            raise UsageError(f"has {model.vocab_size} tokens in its vocabulary, {self.name} {self.vocabulary}: their predictions cannot be compared",
                             where=model.name, remedy="compare with the model that it was made of")
        least = min((self, Takes.of(model)), key=lambda one: one.length)
        if context is not None and context > least.length:
            raise UsageError(f"{least.name} takes {least.length} tokens, not {context}", where="--context",
                             remedy=f"at most {least.length}; left out, it is what both take")


def who(model: LoadedModel) -> dict[str, Any]:
    """Name, plan and cache. kv_cache: all of its precisions, its bytes per token, and of one that was chosen by sensitivity what it lost and might have."""
    return {"model": model.name, "plan": str(model.plan), "cache": model.cache_spec.format,
            "kv_cache": {"precision": cache_name(model.cache_spec), "bytes_per_token": model.kv_bytes_per_token, **model.report.cache_search}}


def _beside(load_model: Loader, notes: list[str]) -> LoadedModel | None:
    """The model, or None where there is no memory for it beside the original."""
    try:
        return load_model()
    except CapacityError as error:
        notes.append(f"the two models do not fit into memory together, the original's logits went through a file ({error.what})")
        return None


def _check_tokens(model: LoadedModel, text: EvaluationText, cuts: Windows, context: int, windows: int | None) -> None:
    own = windows_of(model, text.documents, context=context, windows=windows)
    if not np.array_equal(own.tokens, cuts.tokens):
        raise UsageError("the two models cut the text into different tokens, so their predictions cannot be compared", where=model.name,
                         remedy="compare with the model that it was made of")
