"""Dispatch: which backend runs a problem, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import KernelError
from ..kernels.op import Problem


class Candidate(Protocol):
    """What a dispatch asks of a backend."""

    def supports(self, problem: Problem) -> str | None: ...


@dataclass
class Dispatch:
    """`candidates` by name, best first; the first that can run a problem does. `chosen` holds what was decided."""

    candidates: Mapping[str, Candidate]
    chosen: dict[Problem, str] = field(default_factory=dict)

    def refusals(self, problem: Problem) -> dict[str, str | None]:
        """Each candidate's reason why it cannot run the problem, None where it can."""
        return {name: candidate.supports(problem) for name, candidate in self.candidates.items()}

    def choose(self, problem: Problem) -> str:
        """The name of the kernel to use. Raises KernelError with every refusal when none can."""
        if problem in self.chosen:
            return self.chosen[problem]
        refusals = self.refusals(problem)
        able = [name for name, reason in refusals.items() if reason is None]
        if not able:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items()) or "there are no kernels"
            raise KernelError(f"no kernel runs this {problem.op}: {reasons}", where=shown(problem))
        self.chosen[problem] = able[0]
        return able[0]


def shown(problem: Problem) -> str:
    """`linear 576 x 1536, weight int8 channel, activation bf16`"""
    size = f" {problem.n} x {problem.k}" if problem.n else f" of heads {problem.head_dim} wide" if problem.head_dim else ""
    specs = [f"{role} {spec.format}{'' if spec.granularity == 'none' else ' ' + spec.granularity}{spec.size or ''}"
             for role, spec in (("weight", problem.weight), ("activation", problem.activation), ("cache", problem.cache)) if spec is not None]
    return ", ".join([f"{problem.op}{size}", *specs])
