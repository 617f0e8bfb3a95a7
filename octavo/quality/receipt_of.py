"""receipt_of(): the receipt of a checkpoint that was written from another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint, open_checkpoint
from ..errors import OctavoError
from ..loading import LoadedModel, load
from ..schemes import cache_name
from .comparison import Comparison, compare
from .earlier import conclude, earlier_loss
from .intervals import finite
from .own_text import OWN_TEXT
from .perplexity import windows_of
from .receipt import Receipt, beside, digests, not_measured
from .texts import EvaluationText
from .weights import weight_errors

CONTEXT, WINDOWS = 128, 4  # a few hundred tokens: what a receipt costs is bounded, whatever the model
Check = Callable[[], None]


def receipt_of(source: str | Path, out: str | Path, *, exact: bool = False, settings: Mapping[str, Any] | None = None,
               calibration: Mapping[str, Any] | None = None, output_errors: Mapping[str, float] | None = None, text: EvaluationText = OWN_TEXT,
               threads: int | None = None, cache_dir: Path | None = None, revision: str | None = None, allow_pickle: bool = False) -> Receipt:
    """Load both, compare them on a few hundred tokens, and write the receipt beside `out` (a folder or a .gguf file). Returns it.

    exact          no number changed: nothing is measured; what the source's own receipt says is taken over
    calibration    {"name", "sha256", "sequences", "tokens", "experts"}, of what there was
    output_errors  weight -> squared error of its outputs as a part of their square, where inputs were known

    What the source had lost before is part of it (see earlier.py). What keeps it from being measured (no memory, an architecture that is not served) goes
    into the receipt as the reason.
    Raises CheckpointError where the receipt cannot be written.
    """
    original, result = open_checkpoint(source, revision=revision, allow_pickle=allow_pickle), open_checkpoint(out)
    receipt = Receipt("exact" if exact else "not measured", settings=dict(settings or {}), calibration=None if calibration is None else dict(calibration),
                      original=_facts(original, cache_dir), result=_facts(result, cache_dir))
    before = earlier_loss(original, cache_dir)
    if exact:
        _take_over(receipt, before)
    else:
        try:
            receipt.weights = {name: {"weight": finite(error)} for name, error in weight_errors(original, result).items()}
            for name, error in (output_errors or {}).items():
                receipt.weights.setdefault(name, {})["output"] = finite(error)
            ours = load(source, use_cache=False, threads=threads, revision=revision, allow_pickle=allow_pickle, cache_dir=cache_dir)
            theirs = load(out, use_cache=False, threads=threads, cache_dir=cache_dir)
            conclude(receipt, before, measure(ours, theirs, text), text)
            receipt.original["plan"], receipt.result["plan"], receipt.result["cache"] = str(ours.plan), str(theirs.plan), cache_name(theirs.cache_spec)
        except OctavoError as error:
            receipt.reason = not_measured(error)
    receipt.write(beside(Path(out).expanduser()))
    return receipt


def _take_over(receipt: Receipt, before: Receipt) -> None:
    """The same numbers in another format have lost what they had lost before, if that is known."""
    receipt.status, receipt.reason = before.status, before.reason
    if before.status == "exact":
        receipt.reason = ""
    elif before.status == "not measured":
        receipt.reason = f"the numbers are the source's, and what that had lost is not known: {before.reason}"
    if before.result:  # its own receipt, not what is known without one
        receipt.loss, receipt.text, receipt.weights, receipt.calibration = before.loss, before.text, before.weights, before.calibration
        receipt.original, receipt.settings = before.original, {**before.settings, "converted": receipt.settings}


def measure(original: LoadedModel, model: LoadedModel, text: EvaluationText = OWN_TEXT, check: Check = lambda: None, *,
            threads: int | None = None) -> Comparison:
    """At most CONTEXT x WINDOWS tokens; `check` is called now and then and may raise to end it."""
    context = min(CONTEXT, original.max_model_len, model.max_model_len)
    return compare(original, model, windows_of(original, text.documents, context=context, windows=WINDOWS), threads=threads, on_rows=lambda *_: check())


def _facts(checkpoint: Checkpoint, cache_dir: Path | None) -> dict[str, Any]:
    return {"name": checkpoint.path.name, "format": checkpoint.codec, "sha256": digests(checkpoint, cache_dir)}
