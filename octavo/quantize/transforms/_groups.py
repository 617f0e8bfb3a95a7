"""What flows into the linears of a layer, for transforms that move factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ...calibration import Block, Group, Source, Statistics
from ...schemes import Scheme, TensorSpec
from ..method import Needs
from ._factors import Problem, remaining, sample
from ._fold import columns, fold, why_not

INPUTS = 256  # rows of inputs that are looked at where inputs are rounded


@dataclass
class Seen:
    """Linears that read one input, and what they were given before anything was changed: statistics, and some of the rows with what each counts."""

    names: list[str]
    source: Source | None
    statistics: Statistics
    inputs: np.ndarray | None
    counts: np.ndarray | None


def look(block: Block, schemes: Mapping[str, Scheme], *, inputs: bool = False) -> list[Seen]:
    """Run the layer once; the groups with a weight to be rounded, in the order of computation."""
    found: list[Seen] = []

    def visit(group: Group) -> None:
        if any(name in schemes for name in group.names):
            statistics = group.statistics(reaching=False)  # see Group.sampled_counts
            rows, counts = (group.inputs(INPUTS), group.sampled_counts(INPUTS)) if inputs else (None, None)
            found.append(Seen(group.names, group.source, statistics, rows, counts))

    block.run(visit)
    return found


def spread(block: Block, schemes: Mapping[str, Scheme], seen: list[Seen], choose: Callable[[Problem, Statistics], np.ndarray],
           needs: Needs) -> list[Seen]:
    """Fold the factors that `choose` finds for each group, for a rounder that needs this; returns what the groups are given now."""

    def problem(one: Seen) -> np.ndarray | None:
        if why_not(one.source, one.names, schemes) is not None:
            return None
        assert one.source is not None
        return choose(_problem(block, schemes, one, one.source, needs), one.statistics)

    changed = []
    # Searched side by side and folded in order. What one fold does to another group's weights does not matter to that group's search: rows of the value
    # and up projections are scaled as a whole.
    for one, factors in zip(seen, block.map(problem, seen), strict=True):
        if factors is None or one.source is None:
            changed.append(one)
            continue
        taken = fold(block, one.source, one.names, factors, schemes)
        changed.append(Seen(one.names, one.source, one.statistics.scaled(taken), None if one.inputs is None else one.inputs / taken,
                            one.counts))
    return changed


def _problem(block: Block, schemes: Mapping[str, Scheme], one: Seen, source: Source, needs: Needs) -> Problem:
    statistics = one.statistics
    assert statistics.gram is not None
    weights = [block.tensors[name] for name in one.names]
    specs: list[TensorSpec] = [schemes[name].weight for name in one.names]
    parts = [1 / max(statistics.output_error(weight) * len(sample(weight)) / len(weight), 1e-30) for weight in weights]
    activation = schemes[one.names[0]].activation
    rounded = one.inputs is not None and activation.quantized
    gram = None if needs == "gram" else statistics.gram
    noise = remaining(statistics.gram) if needs == "gram" else np.diagonal(statistics.gram).astype(np.float64)
    return Problem([sample(weight) for weight in weights], specs, parts, noise, gram, columns(source, weights[0].shape[1]),
                   one.inputs if rounded else None, activation if rounded else None, one.counts if rounded else None)
