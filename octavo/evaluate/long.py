"""Long contexts: what is lost where much has gone before, and whether what was said there is still found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..quality import Comparison, Estimate, Model, Recall, compare, copy_task, estimate, needle_task, windows_of

LAST = 8  # the end of a window: its last eighth


@dataclass
class LongContext:
    """At one length: the comparison over whole windows, and the tasks' results for the model and (where there is one) the original.

    note: why this length, or a part of it, was not measured
    """

    length: int
    comparison: Comparison | None = None
    recall: dict[str, list[Recall]] = field(default_factory=dict)
    note: str = ""

    @property
    def kl_at_end(self) -> Estimate | None:
        """Mean KL over the last eighth of the windows, where the context is longest."""
        if self.comparison is None:
            return None
        late = self.comparison.windows.positions >= self.length - self.length // LAST
        return estimate(self.comparison.rows.kl[late], self.comparison.windows.blocks[late])

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"length": self.length}
        if self.comparison is not None and (late := self.kl_at_end) is not None:
            found |= {"kl": self.comparison.kl.to_json(), "kl_at_end": late.to_json(), "perplexity_ratio": self.comparison.perplexity_ratio.to_json(),
                      "top1_agreement": self.comparison.top1_agreement.to_json(), "windows": len(self.comparison.windows.tokens)}
        found |= {who: [one.to_json() for one in tasks] for who, tasks in self.recall.items()}
        return found | ({"note": self.note} if self.note else {})


def long_context(model: Model, original: Model | None, documents: Sequence[str], lengths: Sequence[int], *, windows: int = 2,
                 on_length: Callable[[int], None] | None = None) -> list[LongContext]:
    """KL on `windows` windows of each length, and the copy and needle tasks. A length that the model or the text does not reach gets a note.

    `on_length` is called with each length before it is measured.
    """
    found = []
    for length in lengths:
        if on_length is not None:
            on_length(length)
        one = LongContext(length)
        found.append(one)
        most = min(model.max_model_len, original.max_model_len if original is not None else model.max_model_len)
        if length > most:
            one.note = f"the model takes {most} tokens"
            continue
        try:
            if original is not None:
                one.comparison = compare(original, model, windows_of(original, documents, context=length, windows=windows))
            text = "".join(documents)
            for who, what in (("model", model), ("original", original)):
                if what is not None:
                    one.recall[who] = [copy_task(what, text, length), needle_task(what, text, length)]
        except UsageError as error:
            one.note = str(error)
    return found
