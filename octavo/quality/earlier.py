"""What a checkpoint had lost before anything was done to it here, and what two losses on end come to.

    original --(its receipt)--> checkpoint --(measured here)--> what is served or written

A model that came quantized is nobody's original: measured against it, a cache or a second quantization would look as if nothing had been lost before.
So its receipt's loss is added where the files are still those that the receipt names; where there is no such receipt, the sum is not known.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint
from .comparison import Comparison
from .receipt import Receipt, beside, is_of, read_receipt
from .texts import EvaluationText

UNKNOWN = "it came quantized and without a receipt; name its original with --against (itself, to take it for the original as it is stored)"
CHANGED = "the receipt beside the files is of other files: they were changed since it was written; name its original with --against"


def earlier_loss(checkpoint: Checkpoint, cache_dir: Path | None = None) -> Receipt:
    """exact: it is an original. measured: by the receipt beside its files, which are still those it was written for. Else not measured, with the reason.

    Raises CheckpointError where its files cannot be read.
    """
    known = read_receipt(beside(checkpoint.path))
    if known is not None:
        return known if is_of(known, checkpoint, cache_dir) else Receipt("not measured", CHANGED)
    return Receipt("not measured", UNKNOWN) if came_quantized(checkpoint) else Receipt("exact", "served as it is stored")


def came_quantized(checkpoint: Checkpoint) -> bool:
    """Whether any of its matrices, their inputs or its key-value cache are stored, or said to be, in fewer bits."""
    specs = [spec for info in checkpoint.tensors.values() if len(info.shape) == 2 for spec in (info.spec, info.activation)]
    return any(spec is not None and spec.quantized for spec in (*specs, checkpoint.cache))


def conclude(receipt: Receipt, before: Receipt, comparison: Comparison, text: EvaluationText) -> None:
    """`receipt` gets what was measured against a model that had itself lost what `before` says."""
    receipt.took(comparison, text)
    if before.status == "measured":
        receipt.loss = joined(before, receipt.loss)
        receipt.calibration = receipt.calibration or before.calibration
        receipt.original["earlier"] = {"original": before.original, "settings": before.settings, "created": before.created, "text": before.text,
                                       "kl": before.loss["kl"]["mean"]}
    elif before.status == "not measured":
        receipt.reason = f"what it had lost before is not known: {before.reason}. Since then: {receipt.line}"
        receipt.status, receipt.result["since"], receipt.loss = "not measured", receipt.loss, {}


def joined(before: Receipt, here: dict[str, Any]) -> dict[str, Any]:
    """The loss of both steps in the form of one, from what `Comparison.to_json` said of each.

    KL: (sqrt(earlier) + sqrt(here))^2. To second order KL is the square of a length, so two steps are at most that far apart, and it is never less than
    the receipt's. Agreement: disagreements add, at most. Perplexity ratios multiply, which is exact where both were measured on one text. Quantiles
    of two steps do not follow from those of each: None.
    """
    first, kl = before.loss, here["kl"]
    agreement = {bound: _both(first["top1_agreement"][bound], here["top1_agreement"][bound], lambda a, b: max(0.0, a + b - 1)) for bound in ("value", "low")}
    ratio = {bound: _both(first["perplexity_ratio"][bound], here["perplexity_ratio"][bound], lambda a, b: a * b) for bound in ("value", "low", "high")}
    return {
        "perplexity": here["perplexity"],
        "perplexity_ratio": ratio,
        "kl": {"mean": _both(first["kl"]["mean"], kl["mean"], _lengths), "median": None, "p99": None, "max": None,
               "low": first["kl"]["low"], "high": _both(first["kl"]["high"], kl["high"], _lengths), "median_interval": [None, None],
               "p99_interval": [None, None]},
        "top1_agreement": {**agreement, "high": first["top1_agreement"]["high"]},
        "broken_tokens": first["broken_tokens"] + here["broken_tokens"],
        "tokens": here["tokens"], "windows": here["windows"], "context": here["context"], "blocks": here["blocks"],
        "steps": {"earlier": first["kl"]["mean"], "here": kl["mean"]},
    }


def room_for(max_kl: float, known: Receipt, apart: bool) -> float:
    """KL that another step may cost beside what is `known`, so that both keep `max_kl`. apart: they are put together by `joined`, else measured as one,
    where the losses of independent errors add."""
    return max(0.0, (math.sqrt(max_kl) - math.sqrt(max(known.kl, 0.0))) ** 2 if apart else max_kl - known.kl)


def _lengths(one: float, other: float) -> float:
    return (math.sqrt(max(one, 0.0)) + math.sqrt(max(other, 0.0))) ** 2


def _both(one: float | None, other: float | None, how: Any) -> float | None:
    return None if one is None or other is None else float(how(one, other))
