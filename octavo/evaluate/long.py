"""Long contexts: what is lost where much has gone before, and whether what was said there is still found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..quality import Comparison, Estimate, Model, Recall, compare, copy_task, needle_task, windows_of
from ..quality.recall import exact_difference, tokens_difference

LAST = 8  # the end of a window: its last eighth
MOST, TOKENS, LEAST = 8, 32_768, 2  # windows of a length: so many, or as many as hold so many tokens in all
NARROW = 5  # windows from which on an interval is not mostly the doubt about its own width: Student's t is within half as much again of the normal's
TASKS: Mapping[str, Callable[[Model, str, int], Recall]] = {"copy": copy_task, "needle": needle_task}


@dataclass
class LongContext:
    """At one length: the comparison over whole windows, and the tasks' results for the model and (where there is one) the original.

    notes: why this length, or a part of it, was not measured, or says little
    """

    length: int
    comparison: Comparison | None = None
    recall: dict[str, list[Recall]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def kl_at_end(self) -> Estimate | None:
        """Mean KL over the last eighth of the windows, where the context is longest."""
        return None if self.comparison is None else self.comparison.kl_from(self.length - self.length // LAST)

    @property
    def note(self) -> str:
        return "; ".join(self.notes)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"length": self.length}
        if self.comparison is not None and (late := self.kl_at_end) is not None:
            found |= {"kl": self.comparison.kl.to_json(), "kl_at_end": late.to_json(), "perplexity_ratio": self.comparison.perplexity_ratio.to_json(),
                      "top1_agreement": self.comparison.top1_agreement.to_json(), "windows": len(self.comparison.windows.tokens)}
        found |= {who: [one.to_json() for one in tasks] for who, tasks in self.recall.items()}
        if "original" in self.recall:
            found["difference"] = [
                {"task": mine.kind, "exact": exact_difference(mine, before).to_json(), "tokens": tokens_difference(mine, before).to_json()}
                for mine, before in zip(self.recall["model"], self.recall["original"], strict=True)]
        return found | ({"note": self.note} if self.notes else {})


def windows_at(length: int) -> int:
    """How many windows of a length are measured where nobody says: MOST, fewer where they would hold more than TOKENS tokens, LEAST at least."""
    return max(LEAST, min(MOST, TOKENS // length))


def long_context(model: Model, original: Model | None, documents: Sequence[str], lengths: Sequence[int], *, windows: int | None = None,
                 on_length: Callable[[int], None] | None = None) -> list[LongContext]:
    """KL on `windows` windows of each length (None: `windows_at`), and the copy and needle tasks. What the models or the text do not reach gets a note.

    `on_length` is called with each length before it is measured.
    """
    text, found = "".join(documents), []
    for length in lengths:
        if on_length is not None:
            on_length(length)
        one = LongContext(length)
        found.append(one)
        most = min(model.max_model_len, original.max_model_len if original is not None else model.max_model_len)
        if length > most:
            one.notes.append(f"the model takes {most} tokens")
            continue
        if original is not None:
            _compare(one, model, original, documents, windows or windows_at(length))
        for name, task in TASKS.items():
            try:
                each = {who: task(what, text, length) for who, what in (("model", model), ("original", original)) if what is not None}
            except UsageError as error:
                one.notes.append(f"no {name} task: {error.what}")
                continue
            for who, result in each.items():
                one.recall.setdefault(who, []).append(result)
    return found


def _compare(one: LongContext, model: Model, original: Model, documents: Sequence[str], windows: int) -> None:
    try:
        cuts = windows_of(original, documents, context=one.length, windows=windows)
    except UsageError as error:
        one.notes.append(error.what)
        return
    one.comparison = compare(original, model, cuts)
    count = len(cuts.tokens)
    if count < NARROW:
        short = f", which is all that the text holds of {windows}" if count < windows else ""
        one.notes.append(f"{count} window{'s' if count > 1 else ''}{short}: {'wide intervals' if count > 1 else 'no interval'}")
