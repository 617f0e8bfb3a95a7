"""compare: whether two results differ, side by side of the same name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..traffic import Difference, Result, differences


@dataclass(frozen=True)
class Pair:
    """Two sides and what differs: figures of `b` over those of `a`."""

    a: str
    b: str
    figures: list[Difference]
    warnings: list[str]

    @property
    def different(self) -> bool:
        return any(one.verdict in ("lower", "higher") for one in self.figures)


def compare(a: Sequence[Result], b: Sequence[Result] | None, *, confidence: float = 0.99) -> list[Pair]:
    """Runs of the same label are runs of one side. `b` None: every label of `a` against its first.

    Raises UsageError where the two have no label in common and more than one each.
    """
    left = _by_label(a)
    if b is None:
        if len(left) < 2:
            raise UsageError("holds one side only", where="compare", remedy="name a second file")
        first, *others = left
        pairs = [(first, left[first], other, left[other]) for other in others]
    else:
        right = _by_label(b)
        common = [label for label in left if label in right]
        if not common and (len(left) > 1 or len(right) > 1):
            raise UsageError(f"no label in common: {', '.join(left)} and {', '.join(right)}", where="compare", remedy="compare files of the same sides")
        names = [(label, label) for label in common] or [(next(iter(left)), next(iter(right)))]
        pairs = [(one, left[one], other, right[other]) for one, other in names]
    return [Pair(one, other, differences([r.series() for r in x], [r.series() for r in y], confidence=confidence), _warnings(x, y))
            for one, x, other, y in pairs]


def _by_label(results: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.label, []).append(result)
    return found


def _warnings(a: Sequence[Result], b: Sequence[Result]) -> list[str]:
    """What makes a comparison unfair."""
    told = []
    if {r.prompts["sha256"] for r in a} != {r.prompts["sha256"] for r in b}:
        told.append("the prompts are not the same")
    if len({r.load["arrivals"] for r in [*a, *b]}) > 1:
        told.append(f"the load is not the same: {a[0].load['arrivals']} and {b[0].load['arrivals']}")
    failed = [max(r.summary.failed / max(r.summary.requests, 1) for r in side) for side in (a, b)]
    if max(failed) > 0.01:
        told.append(f"failed requests are left out: {failed[0]:.1%} and {failed[1]:.1%}")
    busy = max(r.summary.client_share for r in [*a, *b])
    if busy > 0.5:
        told.append(f"the client itself took {busy:.0%} of a core")
    if len(a) == 1 or len(b) == 1:
        told.append("one run of a side cannot tell how much a server differs from start to start; --runs 3 can")
    return told
