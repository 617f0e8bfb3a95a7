"""decide(): which candidate to take for a goal and limits, why, and what would change it. A pure function of what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import UsageError
from .candidate import DISTURBED, Candidate, Load, Outcome, front, outcome

Goal = Literal["latency", "memory", "cost", "edge", "quality"]
GOALS: tuple[Goal, ...] = ("latency", "memory", "cost", "edge", "quality")
NEAR = 0.02          # of the best: as good, and the one that loses least is taken
USUAL_KL = 0.1       # nats per token, where no limit is given: published 4-bit models lose 0.03 to 0.07 (llama.cpp, LLaMA-3-8B, Q4_K_M and Q4_0)
USERS = (1, 4, 16, 64)  # that are tried, when it is told what would change the choice
EDGE_PER_TOKEN = 0.1  # seconds; reading aloud or silently needs 5 tokens a second, half of this rate


@dataclass(frozen=True)
class Limits:
    """Seconds of an answer (p95) and between its tokens, bytes, nats per token; None: no limit."""

    p95: float | None = None
    per_token: float | None = None
    memory: float | None = None
    max_kl: float | None = None

    def broken(self, one: Outcome) -> list[str]:
        """Names of the limits that are not kept. A loss that is not known keeps no limit."""
        return [name for name in LIMITED if (limit := getattr(self, name)) is not None and not value_of(one, name) <= limit]


LIMITED = ("p95", "per_token", "memory", "max_kl")
WORDS = {"p95": "p95 of an answer", "per_token": "time per token", "memory": "memory", "max_kl": "loss (KL)"}


@dataclass(frozen=True)
class Verdict:
    """One candidate: the limits that it breaks, and whether no other beats it (Pareto)."""

    outcome: Outcome
    broken: tuple[str, ...]
    on_front: bool
    why: str = ""


@dataclass(frozen=True)
class Decision:
    """choice   None where nothing keeps the limits; nearest: then the one that breaks them least
    reasons, changes   sentences: why, and what would lead to another choice
    """

    goal: Goal
    limits: Limits
    load: Load
    verdicts: tuple[Verdict, ...]
    choice: Outcome | None
    nearest: Outcome | None = None
    reasons: tuple[str, ...] = ()
    changes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {
            "goal": self.goal, "limits": vars(self.limits), "load": vars(self.load),
            "choice": self.choice.name if self.choice else None, "nearest": self.nearest.name if self.nearest else None,
            "reasons": list(self.reasons), "changes": list(self.changes),
            "candidates": [{**v.outcome.to_json(), "breaks": list(v.broken), "pareto": v.on_front, "why": v.why} for v in self.verdicts],
        }


def effective(goal: Goal | None, limits: Limits) -> tuple[Goal, Limits]:
    """What is meant where something is left open. No goal: with limits of speed or memory the least loss within them, else latency. No limit of the
    loss: USUAL_KL. edge: a limit of EDGE_PER_TOKEN."""
    meant: Goal = goal or ("quality" if any(v is not None for v in (limits.p95, limits.per_token, limits.memory)) else "latency")
    limits = replace(limits, max_kl=USUAL_KL) if limits.max_kl is None else limits
    if meant == "edge" and limits.per_token is None:
        limits = replace(limits, per_token=EDGE_PER_TOKEN)
    return meant, limits


def value_of(one: Outcome, name: str) -> float:
    value = one.kl if name == "max_kl" else getattr(one, name)
    return math.inf if math.isnan(value) else float(value)


def objective(goal: Goal, one: Outcome) -> float:
    """What is to be small."""
    by_goal: dict[Goal, Callable[[], float]] = {
        "latency": lambda: one.p95, "memory": lambda: one.memory, "edge": lambda: one.memory, "cost": lambda: 1 / one.tokens_per_s,
        "quality": lambda: value_of(one, "max_kl"),
    }
    return by_goal[goal]()


def decide(candidates: Sequence[Candidate], load: Load, goal: Goal | None = None, limits: Limits | None = None, *,
           cost_per_hour: float | None = None) -> Decision:
    """Among those that run and keep all limits, the best for the goal; of those within NEAR of it, the one that loses least.

    Raises UsageError where there are no candidates.
    """
    if not candidates:
        raise UsageError("there is no candidate to choose from", where="advise", remedy="name precisions with --candidates")
    asked = limits or Limits()
    meant, bounds = effective(goal, asked)
    outcomes = [outcome(one, load, cost_per_hour) for one in candidates]
    choice, nearest = _choose(outcomes, meant, bounds)
    best = front(outcomes)
    verdicts = tuple(Verdict(one, tuple(bounds.broken(one)), one.name in best, _why_not(one, choice, meant, bounds)) for one in outcomes)
    return Decision(meant, bounds, load, verdicts, choice, nearest, tuple(_reasons(outcomes, choice, nearest, meant, bounds)),
                    tuple(_changes(candidates, outcomes, choice, load, meant, bounds, asked)))


def _choose(outcomes: Sequence[Outcome], goal: Goal, limits: Limits) -> tuple[Outcome | None, Outcome | None]:
    """(choice, None), or (None, the nearest) where none keeps the limits."""
    able = [one for one in outcomes if one.candidate.runs]
    keeping = [one for one in able if not limits.broken(one)]
    if not keeping:
        return None, min(able, key=lambda one: _excess(one, limits), default=None)
    least = min(objective(goal, one) for one in keeping)
    near = [one for one in keeping if objective(goal, one) <= least * (1 + (0 if goal == "quality" else NEAR))]
    return min(near, key=lambda one: (value_of(one, "max_kl"), objective(goal, one), one.p95, one.memory)), None


def _excess(one: Outcome, limits: Limits) -> float:
    """By how much the limits are broken, in powers of e, added up."""
    return sum(min(math.log(max(value_of(one, name), 1e-12) / max(getattr(limits, name), 1e-12)), 100.0) for name in limits.broken(one))


def shown(name: str, value: float) -> str:
    """A value with its unit."""
    if not math.isfinite(value):
        return "not known"
    if name in ("p95", "per_token"):
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    return f"{value / 1e9:.3g} GB" if name == "memory" and value >= 1e9 else f"{value / 1e6:.3g} MB" if name == "memory" else f"{value:.3g} nats per token"


_BY_GOAL = {"latency": "p95", "memory": "memory", "edge": "memory", "quality": "max_kl"}


def _said(goal: Goal, one: Outcome) -> str:
    """The figure that the goal is about."""
    if goal == "cost":
        return f"{one.tokens_per_s:.4g} tokens/s" + (f", {one.cost:.3g} a million tokens" if math.isfinite(one.cost) else "")
    return f"{WORDS[_BY_GOAL[goal]]} {shown(_BY_GOAL[goal], value_of(one, _BY_GOAL[goal]))}"


def _reasons(outcomes: Sequence[Outcome], choice: Outcome | None, nearest: Outcome | None, goal: Goal, limits: Limits) -> list[str]:
    if choice is None:
        if nearest is None:
            return ["no candidate runs here"]
        broken = ", ".join(_excess_said(n, value_of(nearest, n), getattr(limits, n)) for n in limits.broken(nearest))
        return [f"nothing keeps all limits; {nearest.name} comes nearest: {broken}", *_beyond_all(outcomes, limits)]
    keeping = [one for one in outcomes if one.candidate.runs and not limits.broken(one)]
    told = [f"{choice.name} keeps every limit: " + ", ".join(f"{WORDS[n]} {shown(n, value_of(choice, n))} of {shown(n, getattr(limits, n))} allowed"
                                                              for n in LIMITED if getattr(limits, n) is not None)]
    least = min(keeping, key=lambda one: objective(goal, one))
    if len(keeping) == 1:
        told.append("no other candidate keeps them")
    elif least is not choice:
        told.append(f"{least.name} is {_more(objective(goal, choice), objective(goal, least))} better for {goal}, which is too near to tell, and loses more")
    else:
        told.append(f"of the {len(keeping)} that do, it is the best for {goal}: {_said(goal, choice)}")
    if choice.candidate.predicted:
        told.append(f"its figures are a prediction: {choice.candidate.predicted}")
    elif choice.beyond:
        told.append("its speed with that many users lies beyond what was measured and is predicted")
    shaky = [one.name for one in outcomes if any(step.disturbed for step in one.candidate.decode)]
    if shaky:
        told.append(f"steps of {', '.join(shaky)} vary by more than {DISTURBED:.0%}: the machine does other work too; do not trust it, run it again")
    if limits.max_kl is not None and choice.candidate.kl_high > limits.max_kl:
        told.append(f"the interval of its loss reaches {choice.candidate.kl_high:.3g}, above the limit: measure it on more text with octavo evaluate")
    return told


def _excess_said(name: str, value: float, limit: float) -> str:
    """A broken limit, and by how much."""
    ratio = value / limit if limit > 0 and math.isfinite(value) else math.inf
    much = "" if ratio == math.inf else f" ({ratio - 1:.0%} more)" if ratio < 2 else f" ({ratio:.3g} times as much)"
    return f"{WORDS[name]} {shown(name, value)} where {shown(name, limit)} is allowed{much}"


def _beyond_all(outcomes: Sequence[Outcome], limits: Limits) -> list[str]:
    """Of limits that no candidate keeps, what the best one reaches; where each is kept by one, that no one keeps them together."""
    able = [one for one in outcomes if one.candidate.runs]
    told = []
    for name in LIMITED:
        if all(name in limits.broken(one) for one in able):
            least = min(able, key=lambda one: value_of(one, name))
            told.append(f"no candidate keeps the limit of {WORDS[name]}: the least is {shown(name, value_of(least, name))}, {least.name}")
    return told or ["each limit is kept by some candidate, but no candidate keeps them all"]


def _why_not(one: Outcome, choice: Outcome | None, goal: Goal, limits: Limits) -> str:
    if one is choice:
        return "chosen"
    if not one.candidate.runs:
        return f"does not run here: {one.candidate.predicted}"
    if broken := limits.broken(one):
        return "; ".join(f"{WORDS[n]} {shown(n, value_of(one, n))}, {shown(n, getattr(limits, n))} allowed" for n in broken)
    if choice is None:
        return ""
    mine, theirs = objective(goal, one), objective(goal, choice)
    return f"{_said(goal, one)}: {_more(mine, theirs)} more" if mine > theirs and goal != "cost" else (
        f"{_said(goal, one)}: {_more(mine, theirs)} longer a token" if mine > theirs else "no better by more than noise, and loses more or is slower")


def _more(a: float, b: float) -> str:
    return f"{a / b - 1:.0%}" if b > 0 and math.isfinite(a) else "infinitely"


def _changes(candidates: Sequence[Candidate], outcomes: Sequence[Outcome], choice: Outcome | None, load: Load, meant: Goal,
             bounds: Limits, asked: Limits) -> list[str]:
    """Other limits, numbers of users and goals that lead elsewhere, found by trying them."""
    told = []
    for name in LIMITED:
        values = sorted({v for one in outcomes if one.candidate.runs and math.isfinite(v := value_of(one, name))})
        own, limit = (value_of(choice, name) if choice is not None else math.inf), getattr(bounds, name)
        if choice is not None and (below := [v for v in values if v < own]):
            other, _ = _choose(outcomes, meant, replace(bounds, **{name: below[-1]}))
            told.append(f"{WORDS[name]} below {shown(name, own)} wanted: {other.name if other else 'nothing'}")
        if limit is not None:
            for value in (v for v in values if v > limit):
                other, _ = _choose(outcomes, meant, replace(bounds, **{name: value}))
                if other is not None and other is not choice:
                    told.append(f"{WORDS[name]} of {shown(name, value)} allowed: {other.name}")
                    break
    was = choice.name if choice else "nothing"
    for users in sorted({*USERS, load.users}):
        elsewhere = [outcome(one, replace(load, users=users)) for one in candidates]
        other, _ = _choose(elsewhere, meant, bounds)
        if (name := other.name if other else "nothing") != was and users != load.users:
            told.append(f"{users} user{'s' if users > 1 else ''}{' (predicted)' if any(one.beyond for one in elsewhere) else ''}: {name}")
            was = name
        elif users == load.users:
            was = choice.name if choice else "nothing"
    for another in GOALS:
        if another != meant:
            other, _ = _choose(outcomes, *effective(another, asked))
            if other is not None and (choice is None or other.name != choice.name):
                told.append(f"--goal {another}: {other.name}")
    return told
