"""Break-even: the number of sequences from which on fewer bits are no faster, predicted and measured.

Few sequences wait for weights, so bytes count; many wait for multiplications, which fewer bits of weights do not make fewer. The prediction knows
two measurements of each precision, a step of one sequence and a prompt (`predicted_seconds`); the measurement is every batch itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .candidate import Candidate, predicted_seconds

PAYS = 1.05  # times as fast is worth having: less than that is no gain
PREDICTED = tuple(1 << power for power in range(9))  # batches that are predicted, however many were measured
PAIRS = (("4bit", "8bit"), ("8bit", "16bit"), ("4bit", "16bit"))


@dataclass(frozen=True)
class BreakEven:
    """few, many      names: fewer and more bits
    predicted, measured   the smallest batch from which on `few` is not PAYS times as fast; None: it still is at the last one, of PREDICTED or of `last`
    last             the largest batch that was measured
    gains            (batch, predicted, measured) how many times as fast, of the measured batches
    """

    few: str
    many: str
    predicted: int | None
    measured: int | None
    last: int
    gains: tuple[tuple[int, float, float], ...]

    @property
    def agree(self) -> bool | None:
        """Within one power of two; also where neither finds a batch. None: a batch beyond the measured ones decides it, which nobody knows."""
        if self.predicted is not None and self.measured is not None:
            return abs(self.predicted.bit_length() - self.measured.bit_length()) <= 1
        if self.measured is not None or self.predicted is None:  # predicted beyond PREDICTED, far from anything that is measured
            return self.measured is None
        return False if self.predicted < self.last else None

    def __str__(self) -> str:
        def said(batch: int | None, last: int) -> str:
            return f"pays up to {last} sequences at least" if batch is None else "never pays" if batch == 1 else f"pays below {batch} sequences"

        agreed = {True: "they agree", False: "they do not agree", None: "more sequences than were measured would tell"}[self.agree]
        return (f"{self.few} over {self.many}: {said(self.measured, self.last)} (measured), {said(self.predicted, PREDICTED[-1])} (predicted); {agreed}")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "agree": self.agree}


def break_even(few: Candidate, many: Candidate) -> BreakEven:
    """Of two measured candidates, at the batches that both were measured at."""
    mine, theirs = ({step.rows: step for step in one.sweep or one.decode} for one in (few, many))
    batches = sorted(mine.keys() & theirs.keys())
    measured = {b: theirs[b].seconds / mine[b].seconds for b in batches}
    predicted = {b: predicted_seconds(theirs[batches[0]], many.prefill, b) / predicted_seconds(mine[batches[0]], few.prefill, b)
                 for b in sorted({*batches, *PREDICTED})}
    return BreakEven(few.name, many.name, _from({b: predicted[b] for b in PREDICTED}), _from(measured), batches[-1],
                     tuple((b, predicted[b], measured[b]) for b in batches))


def _from(gains: Mapping[int, float]) -> int | None:
    """The smallest batch from which on no gain is worth having."""
    found = None
    for batch in sorted(gains, reverse=True):
        if gains[batch] >= PAYS:
            break
        found = batch
    return found


def break_evens(candidates: Sequence[Candidate], pairs: Sequence[tuple[str, str]] = PAIRS) -> list[BreakEven]:
    """4bit over 8bit and 8bit over 16bit, or other pairs, of those that were measured."""
    known = {one.name: one for one in candidates if not one.predicted}
    return [break_even(known[few], known[many]) for few, many in pairs if few in known and many in known]
