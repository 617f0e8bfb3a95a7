"""Goal: how small, how good or how quick the result shall be, and how it is written on the command line."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ...errors import UsageError

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmgt]?i?b?)", re.IGNORECASE)

SIZE, WORK = AIMS = "size", "work"


@dataclass(frozen=True)
class Goal:
    """Exactly one of them.

    bits   per weight, over all matrices, scales counted
    size   bytes of all tensors of the checkpoint
    kl     nats per token that the result loses at most, measured on text that it was not calibrated on

    minimize   of what `kl` allows, the least of: "size", or "work", the bit operations of a token (Candidates.work_of), where 8-bit inputs count half
    """

    bits: float | None = None
    size: int | None = None
    kl: float | None = None
    minimize: str = SIZE

    def __post_init__(self) -> None:
        given = [value for value in (self.bits, self.size, self.kl) if value is not None]
        if len(given) != 1:
            raise UsageError("a mixed search has one goal", where="--target-bits, --target-size, --max-kl", remedy="give one of them")
        if not (math.isfinite(given[0]) and given[0] > 0):
            raise UsageError(f"a goal of {given[0]:g}", where="--target-bits, --target-size, --max-kl", remedy="goals are above 0")
        if self.minimize not in AIMS:
            raise UsageError(f"unknown aim {self.minimize!r}", where="--minimize", remedy=f"known: {', '.join(AIMS)}")
        if self.minimize != SIZE and self.kl is None:
            raise UsageError("says what a bound on KL shall make small", where="--minimize", remedy="give --max-kl, not --target-bits or --target-size")

    def to_json(self) -> dict[str, float | str]:
        """What was given, by its name."""
        given = {"bits": self.bits, "size": self.size, "kl": self.kl}
        return {**{name: value for name, value in given.items() if value is not None}, **({"minimize": self.minimize} if self.kl is not None else {})}


def parse_size(text: str) -> int:
    """Bytes: "80MB" is 80,000,000, "80MiB" 83,886,080, a bare number bytes. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"cannot read the size {text!r}", where="--target-size", remedy="write it as 80MB, 1.5GB or 76MiB")
    unit = match["unit"].lower()
    return int(float(match["number"]) * (1024 if "i" in unit else 1000) ** " kmgt".index(unit[:1] if unit[:1] in "kmgt" and unit else " "))
