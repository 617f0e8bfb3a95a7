"""Candidate: a precision with what was measured of it (or predicted); Outcome: what that means for a load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

DISTURBED = 0.25  # deviation of a step as a part of it that only other work on the machine explains
SURE = 1.6449  # standard deviations above the mean that 95% of a normal law lie under


@dataclass(frozen=True)
class Step:
    """Steps of one shape. rows: sequences that decode together, or tokens of a prompt; seconds, deviation: mean and standard deviation of one step (of
    the whole prompt); the rest at least, per step: bytes of weights and of cache that are read, and operations."""

    rows: int
    seconds: float
    deviation: float = 0.0
    weight_bytes: float = 0.0
    cache_bytes: float = 0.0
    operations: float = 0.0

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.cache_bytes

    @property
    def disturbed(self) -> bool:
        return self.deviation > DISTURBED * self.seconds


@dataclass(frozen=True)
class Load:
    """Users who each ask again as soon as they have their answer; tokens of a question and of an answer."""

    users: int = 1
    prompt: int = 128
    answer: int = 64


@dataclass(frozen=True)
class Candidate:
    """name          as --quantization takes it; scheme: in the grammar
    kl, kl_low, kl_high   loss against the original, nats per token, with its 95% interval; NaN: not known
    weight_bytes, fixed_bytes, kv_bytes_per_token   memory of weights, of the process around them, of a token of context
    prefill, decode  a prompt's step; decoding steps by ascending rows, rows 1 among them
    sweep            decoding steps at more numbers of rows, after less context, from which break-even follows; (): decode serves
    predicted        why it was not measured; "": it was
    runs             whether it can run here at all
    notes            what is not as asked
    """

    name: str
    scheme: str
    kl: float
    weight_bytes: int
    kv_bytes_per_token: int
    prefill: Step
    decode: tuple[Step, ...]
    sweep: tuple[Step, ...] = ()
    fixed_bytes: int = 0
    kl_low: float = math.nan
    kl_high: float = math.nan
    predicted: str = ""
    runs: bool = True
    notes: tuple[str, ...] = ()

    def step(self, rows: int) -> tuple[float, float, bool]:
        """(seconds, deviation, whether it lies beyond what was measured) of a step of so many sequences: on the line between the two nearest; beyond them
        it grows as `predicted_seconds` says."""
        known = self.decode
        for step in known:
            if step.rows == rows:
                return step.seconds, step.deviation, False
        between = next(((a, b) for a, b in pairwise(known) if a.rows < rows < b.rows), None)
        if between is not None:
            low, high = between
            part = (rows - low.rows) / (high.rows - low.rows)
            return low.seconds + (high.seconds - low.seconds) * part, max(low.deviation, high.deviation), False
        near = known[-1] if rows > known[-1].rows else known[0]
        growth = predicted_seconds(known[0], self.prefill, rows) / predicted_seconds(known[0], self.prefill, near.rows)
        return near.seconds * growth, near.deviation, True

    def memory(self, load: Load) -> float:
        """Bytes of the process with every user at full length."""
        return self.fixed_bytes + self.weight_bytes + self.kv_bytes_per_token * load.users * (load.prompt + load.answer)


def predicted_seconds(one: Step, prompt: Step, rows: int) -> float:
    """Of a decoding step, from two measurements: `one`, a step of one sequence (its bytes come at the bandwidth that it shows), and `prompt` (the further
    sequences' operations come at the rate of what it takes beyond reading). Reading and computing add up: on CPUs they overlap little, since the core that
    computes is the one that waits (docs/advise.md has both laws beside measurements)."""
    if not one.bytes or not prompt.operations:
        return one.seconds * rows
    per_byte = one.seconds / one.bytes
    computing = max(prompt.seconds - prompt.bytes * per_byte, prompt.seconds / 2) / prompt.operations
    return (one.weight_bytes + one.cache_bytes * rows) * per_byte + (rows - 1) * one.operations * computing


@dataclass(frozen=True)
class Outcome:
    """What a candidate gives a load.

    p95             seconds from question to last token that 95 of 100 requests keep: while a user's answer is written, each user's question is
                    computed once; steps vary independently of each other
    per_token       mean seconds between two tokens of an answer, prompts of others included
    tokens_per_s    answer tokens of all users together
    memory, kl      bytes; nats per token, NaN where it is not known
    cost            of a million answer tokens, NaN without a price
    beyond          more users than were measured: the step is predicted
    """

    candidate: Candidate
    p95: float
    per_token: float
    tokens_per_s: float
    memory: float
    kl: float
    cost: float
    beyond: bool

    @property
    def name(self) -> str:
        return self.candidate.name

    def to_json(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name != "candidate"}
        return {"name": self.name, "scheme": self.candidate.scheme, "measured": not self.candidate.predicted,
                **{name: finite(value) if isinstance(value, float) else value for name, value in plain.items()}}


def outcome(candidate: Candidate, load: Load, cost_per_hour: float | None = None) -> Outcome:
    seconds, deviation, beyond = candidate.step(load.users)
    share = load.prompt / candidate.prefill.rows
    prompt, prompt_deviation = candidate.prefill.seconds * share, candidate.prefill.deviation * math.sqrt(share)
    whole = load.users * prompt + load.answer * seconds
    spread = math.sqrt(load.users * prompt_deviation**2 + load.answer * deviation**2)
    rate = load.users * load.answer / whole
    cost = cost_per_hour / 3600 / rate * 1e6 if cost_per_hour is not None else math.nan
    return Outcome(candidate, whole + SURE * spread, whole / load.answer, rate, candidate.memory(load), candidate.kl, cost, beyond)


FIGURES = ("p95", "memory", "kl")


def front(outcomes: Sequence[Outcome], figures: Sequence[str] = FIGURES) -> frozenset[str]:
    """Names of those that no other beats (Pareto): none is at least as good in all `figures` of an Outcome, and better in one."""
    def values(one: Outcome) -> list[float]:
        found = [float(getattr(one, name)) for name in figures]
        return [math.inf if math.isnan(value) else value for value in found]

    def beaten(one: Outcome) -> bool:
        mine = values(one)
        return any(values(o) != mine and all(theirs <= own for theirs, own in zip(values(o), mine, strict=True)) for o in outcomes)

    return frozenset(one.name for one in outcomes if one.candidate.runs and not beaten(one))


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_json(candidate: Candidate) -> dict[str, Any]:
    def clean(value: Any) -> Any:
        if isinstance(value, float):
            return finite(value)
        if isinstance(value, Mapping):
            return {name: clean(one) for name, one in value.items()}
        return [clean(one) for one in value] if isinstance(value, list | tuple) else value

    found: dict[str, Any] = clean(asdict(candidate))
    return found
