"""Policy: which kernel runs a problem. Today the first that can, in the order given; a measured order is for `octavo tune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from .errors import KernelError, UsageError
from .kernels.op import Problem
from .schemes import TensorSpec


class Candidate(Protocol):
    """What a policy asks of a backend."""

    def supports(self, problem: Problem) -> str | None: ...


@dataclass
class Policy:
    """`candidates` by name, best first; `chosen` holds what was decided (or read from a file), and is asked before the candidates."""

    candidates: Mapping[str, Candidate]
    chosen: dict[Problem, str] = field(default_factory=dict)

    def refusals(self, problem: Problem) -> dict[str, str | None]:
        """Each candidate's reason why it cannot run the problem, None where it can."""
        return {name: candidate.supports(problem) for name, candidate in self.candidates.items()}

    def choose(self, problem: Problem) -> str:
        """The name of the kernel to use. Raises KernelError with every refusal when none can."""
        known = self.chosen.get(problem)
        if known is not None and known in self.candidates:
            return known
        refusals = self.refusals(problem)
        able = [name for name, reason in refusals.items() if reason is None]
        if not able:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items()) or "there are no kernels"
            raise KernelError(f"no kernel runs this {problem.op}: {reasons}", where=shown(problem))
        self.chosen[problem] = able[0]
        return able[0]

    def to_json(self) -> dict[str, Any]:
        """{"choices": [{"problem": {...}, "kernel": name}]}"""
        return {"choices": [{"problem": asdict(problem), "kernel": kernel} for problem, kernel in self.chosen.items()]}

    @staticmethod
    def from_json(data: Mapping[str, Any], candidates: Mapping[str, Candidate]) -> Policy:
        """The inverse of to_json; choices of kernels that are not among the candidates are kept and not used. Raises UsageError."""
        try:
            chosen = {_problem(entry["problem"]): str(entry["kernel"]) for entry in data["choices"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"this is no policy: {error!r}", where="policy", remedy='expected {"choices": [{"problem": ..., "kernel": ...}]}') from None
        return Policy(candidates, chosen)


def shown(problem: Problem) -> str:
    """`linear 576 x 1536, weight int8 channel, activation bf16`"""
    size = f" {problem.n} x {problem.k}" if problem.n else f" of heads {problem.head_dim} wide" if problem.head_dim else ""
    specs = [f"{role} {spec.format}{'' if spec.granularity == 'none' else ' ' + spec.granularity}{spec.size or ''}"
             for role, spec in (("weight", problem.weight), ("activation", problem.activation), ("cache", problem.cache)) if spec is not None]
    return ", ".join([f"{problem.op}{size}", *specs])


def _problem(data: Mapping[str, Any]) -> Problem:
    specs = {role: None if data.get(role) is None else TensorSpec(**data[role]) for role in ("weight", "activation", "cache")}
    return Problem(**{**data, **specs})
