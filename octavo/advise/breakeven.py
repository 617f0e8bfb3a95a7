"""Break-even: the number of sequences from which on fewer bits are no faster, predicted and measured.

Few sequences wait for weights, so bytes count; many wait for multiplications, which fewer bits of weights do not make fewer. The prediction knows
two measurements of each precision, a step of one sequence (its bandwidth) and a prompt (its rate of operations), and takes the larger of the two
times for every batch in between. The measurement is every batch itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .candidate import Candidate, Step

PAYS = 1.05  # times as fast is worth having: less than that is no gain


@dataclass(frozen=True)
class BreakEven:
    """few, many      names: fewer and more bits
    predicted, measured   the smallest batch from which on `few` is not PAYS times as fast; None: it still is at the last one
    last             the largest batch that was looked at
    gains            (batch, predicted, measured) how many times as fast
    """

    few: str
    many: str
    predicted: int | None
    measured: int | None
    last: int
    gains: tuple[tuple[int, float, float], ...]

    @property
    def agree(self) -> bool:
        """Within one power of two; one beyond the last batch counts as the next power."""
        def place(batch: int | None) -> int:
            return (batch or 2 * self.last).bit_length()

        return abs(place(self.predicted) - place(self.measured)) <= 1

    def __str__(self) -> str:
        def said(batch: int | None) -> str:
            return f"pays up to {self.last} sequences at least" if batch is None else "never pays" if batch == 1 else f"pays below {batch} sequences"

        return f"{self.few} over {self.many}: {said(self.measured)} (measured), {said(self.predicted)} (predicted)"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "agree": self.agree}


def break_even(few: Candidate, many: Candidate) -> BreakEven:
    """Of two measured candidates, at the batches that both were measured at."""
    theirs = {step.rows: step for step in many.decode}
    batches = [step.rows for step in few.decode if step.rows in theirs]
    mine = {step.rows: step for step in few.decode}
    measured = {b: theirs[b].seconds / mine[b].seconds for b in batches}
    predicted = {b: predicted_seconds(many, theirs[b]) / predicted_seconds(few, mine[b]) for b in batches}
    return BreakEven(few.name, many.name, _from(predicted), _from(measured), batches[-1], tuple((b, predicted[b], measured[b]) for b in batches))


def predicted_seconds(candidate: Candidate, step: Step) -> float:
    """Of a decoding step, from its bytes at the rate of a step of one sequence and its operations at the rate of a prompt."""
    one, prompt = candidate.decode[0], candidate.prefill
    reading = step.bytes / one.bytes * one.seconds
    return max(reading, step.operations / prompt.operations * prompt.seconds)


def _from(gains: Mapping[int, float]) -> int | None:
    """The smallest batch from which on no gain is worth having."""
    found = None
    for batch in sorted(gains, reverse=True):
        if gains[batch] >= PAYS:
            break
        found = batch
    return found


def break_evens(candidates: Sequence[Candidate]) -> list[BreakEven]:
    """4bit over 8bit and 8bit over 16bit, of those that were measured."""
    known = {one.name: one for one in candidates if not one.predicted}
    pairs = (("4bit", "8bit"), ("8bit", "16bit"), ("4bit", "16bit"))
    return [break_even(known[few], known[many]) for few, many in pairs if few in known and many in known]
