"""Goal: how small or how good the result shall be, and how it is written on the command line."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ...errors import UsageError

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmgt]?i?b?)", re.IGNORECASE)


@dataclass(frozen=True)
class Goal:
    """Exactly one of them.

    bits   per weight, over all matrices, scales counted
    size   bytes of all tensors of the checkpoint
    kl     nats per token that the result loses at most, measured on text that it was not calibrated on
    """

    bits: float | None = None
    size: int | None = None
    kl: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.bits, self.size, self.kl) if value is not None]
        if len(given) != 1:
            raise UsageError("a mixed search has one goal", where="--target-bits, --target-size, --max-kl", remedy="give one of them")
        if not (math.isfinite(given[0]) and given[0] > 0):
            raise UsageError(f"a goal of {given[0]:g}", where="--target-bits, --target-size, --max-kl", remedy="goals are above 0")


def parse_size(text: str) -> int:
    """Bytes: "80MB" is 80,000,000, "80MiB" 83,886,080, a bare number bytes. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"cannot read the size {text!r}", where="--target-size", remedy="write it as 80MB, 1.5GB or 76MiB")
    unit = match["unit"].lower()
    return int(float(match["number"]) * (1024 if "i" in unit else 1000) ** " kmgt".index(unit[:1] if unit[:1] in "kmgt" and unit else " "))
