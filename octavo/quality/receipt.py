"""Receipt: what a quantized model has lost, on which text, made of what, and how. A JSON file beside the weights."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import __version__
from ..checkpoints import Checkpoint
from ..errors import CheckpointError, OctavoError, QualityError
from .comparison import Comparison
from .texts import EvaluationText

NAME = "octavo-receipt.json"
FORMAT = 1
Status = Literal["measured", "exact", "not measured"]


@dataclass
class Receipt:
    """status      measured; exact: every number is the original's; not measured: `reason` says why
    loss           KL, top-1 agreement, perplexities and their ratio with 95% intervals, as `octavo evaluate --json` prints them
    text           name and sha256 of the text
    weights        name -> {"weight": norm of the error over norm of the weight, "output": the same of the outputs, squared, where inputs were known}
    calibration    name, sha256, sequences and tokens of the calibration text, coverage of experts; None where there was none
    settings       of the quantization
    original, result   name, plan, format, sha256 of the files of each. original["earlier"]: what that had lost itself, which is part of `loss`;
                   result["since"]: what this step alone lost, where what came before is not known
    """

    status: Status
    reason: str = ""
    loss: dict[str, Any] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    weights: dict[str, dict[str, float | None]] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    original: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: {"octavo": __version__, "numpy": np.__version__, "python": platform.python_version(),
                                                              "machine": platform.machine()})
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    format: int = FORMAT

    def took(self, comparison: Comparison, text: EvaluationText) -> None:
        """What was measured becomes the receipt's."""
        self.status, self.reason, self.loss = "measured", "", comparison.to_json()
        self.text = {"name": text.name, "sha256": text.sha256}

    @property
    def kl(self) -> float:
        """Mean KL in nats per token: 0 of what is exact, NaN of what was not measured, infinity where the model gave no numbers."""
        if self.status == "exact":
            return 0.0
        if self.status != "measured":
            return math.nan
        mean = self.loss["kl"]["mean"]
        return math.inf if mean is None else float(mean)

    def refuse_above(self, max_kl: float, where: str) -> None:
        """Raises QualityError where the mean KL is above `max_kl`, is no number, or is not known."""
        if self.status == "not measured":
            raise QualityError(f"what it has lost was not measured: {self.reason}", where=where, remedy="leave --max-kl out to serve it all the same")
        if not self.kl <= max_kl:
            lost = f"a KL of {self.kl:.4g} nats per token" if math.isfinite(self.kl) else f"everything at {self.loss['broken_tokens']} tokens: no numbers"
            steps = self.loss.get("steps")
            parts = "" if steps is None else (f" (at most: {_number(steps['earlier'])} by the receipt of what it was made from and "
                                              f"{_number(steps['here'])} since, put together from above)")
            raise QualityError(f"lost {lost} against its original{parts}, more than the {max_kl:.4g} of --max-kl", where=where,
                               remedy=f"use more bits, another method, {'' if steps is None else '--against the original to measure it, '}or check the files")

    @property
    def line(self) -> str:
        """In one line, for people."""
        if self.status != "measured":
            return f"{self.status}: {self.reason}" if self.reason else self.status
        kl, agree, ratio = self.loss["kl"], self.loss["top1_agreement"], self.loss["perplexity_ratio"]
        steps = self.loss.get("steps")
        parts = "" if steps is None else f" ({_number(steps['earlier'])} by the receipt of what it was made from, {_number(steps['here'])} since)"
        return (f"KL {'at most about ' if steps else ''}{_with_interval(kl['mean'], kl)} nats per token{parts}, same first choice at "
                f"{'no less than ' if steps else ''}{_with_interval(agree['value'], agree, 100, '%')}, "
                f"perplexity x {_with_interval(ratio['value'], ratio)}; {self.loss['tokens']} tokens of {self.text['name']}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, path: Path) -> None:
        """Raises CheckpointError where it cannot be written."""
        from ..checkpoints.writing import write_synced

        try:
            write_synced(path, (json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise CheckpointError(f"cannot be written: {error.strerror}", where=str(path)) from None


def read_receipt(path: Path) -> Receipt | None:
    """The receipt in a file; None where there is none, or it is not one that this version reads."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            return None
        receipt = Receipt(**content)
        known = receipt.line and isinstance(receipt.kl, float) and receipt.status in ("measured", "exact", "not measured")
        return receipt if known and isinstance(receipt.result, Mapping) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def beside(checkpoint: Path) -> Path:
    """Where the receipt of a checkpoint lies: in its folder, or next to its file."""
    return checkpoint / NAME if checkpoint.is_dir() else checkpoint.with_name(f"{checkpoint.name}.{NAME}")


def is_of(receipt: Receipt, checkpoint: Checkpoint, cache_dir: Path | None = None) -> bool:
    """Whether these are the files that the receipt was written for: nothing has changed in them since."""
    return bool(receipt.result.get("sha256")) and receipt.result["sha256"] == digests(checkpoint, cache_dir)


def digests(checkpoint: Checkpoint, cache_dir: Path | None = None) -> dict[str, str]:
    """File name -> sha256."""
    found: dict[str, str] = getattr(checkpoint, "digests")(cache_dir)  # noqa: B009  # every mapped checkpoint has it
    return found


def not_measured(error: OctavoError) -> str:
    """The reason in a receipt for what kept it from being measured."""
    return f"{error.where}: {error.what}" if error.where else error.what


def _number(value: float | None) -> str:
    return "(no number)" if value is None else f"{value:.4g}"


def _with_interval(value: float | None, interval: Mapping[str, float | None], factor: float = 1, unit: str = "") -> str:
    if value is None:
        return "(no number)"
    low, high = interval["low"], interval["high"]
    span = "" if low is None or high is None else f" ({factor * low:.4g} to {factor * high:.4g})"
    return f"{factor * value:.4g}{unit}{span}"
