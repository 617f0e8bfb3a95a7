"""Short runs of every candidate: prompts, decoding at several batches, what it has lost. Each is loaded alone, so that memory holds one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from ..errors import CapacityError, CheckpointError, KernelError, ModelError, OctavoError
from ..kernels.costs import op_costs
from ..loading import load
from ..machine import Machine
from ..quality.online import Online
from ..schemes import Scheme, choose
from ..workloads import Timed, decode, native_program, prefill
from .candidate import Candidate, Load, Step
from .predict import without_measuring

if TYPE_CHECKING:
    from ..loading import LoadedModel

CANDIDATES = ("16bit", "8bit", "W8g64A8g64C8", "4bit", "W4g64A8g64C8", "nf4")
WARM = 3   # decoding steps that are not counted
STEPS = 12  # that are
SWEPT = ("16bit", "8bit", "4bit")  # whose break-even is looked for: they run at every batch once; the others, and further rounds, at those of the choice
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """model      a folder, a file or a hub id; against: its original, where it came quantized
    names         precisions to try, as --quantization takes them
    load          users and lengths that a choice is made for; prompts are measured at its length, decoding after so many tokens
    batches       numbers of sequences that decode together, ascending, 1 first, to find break-even
    rounds        how often every candidate is loaded and run, in turns; the least disturbed round counts
    """

    model: str
    names: tuple[str, ...] = CANDIDATES
    load: Load = field(default_factory=Load)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    rounds: int = 2
    steps: int = STEPS
    against: str | None = None
    quality: bool = True
    threads: int | None = None
    isa: str | None = None
    cache_dir: Path | None = None
    use_cache: bool = True
    allow_pickle: bool = False


@dataclass
class _Runs:
    """What is known of one name so far."""

    scheme: Scheme
    facts: dict[str, object] = field(default_factory=dict)
    prefill: list[Step] = field(default_factory=list)
    decode: dict[int, list[Step]] = field(default_factory=dict)
    failed: str = ""


def batches_for(users: int) -> tuple[int, ...]:
    """1, 2, 4 ... 16, further where there are more users, and their number itself."""
    powers = {1 << i for i in range(max(5, (users - 1).bit_length() + 1))}
    return tuple(sorted({p for p in powers if p <= max(16, users)} | {users}))


def measure(wanted: Wanted, machine: Machine, tell: Tell = lambda what: None) -> tuple[list[Candidate], list[Scheme]]:
    """The candidates in the order of their names, and their schemes. One that cannot be loaded is predicted from the others, and says so.

    Raises SchemeError for a name that cannot be read, and the first error where nothing could be measured at all.
    """
    runs = {name: _Runs(choose(name, machine).plan.default) for name in wanted.names}
    first: OctavoError | None = None
    for turn in range(wanted.rounds):
        for name in wanted.names if turn % 2 == 0 else reversed(wanted.names):  # what drifts, drifts for all
            if not runs[name].failed:
                try:
                    _run(wanted, name, runs[name], turn, tell)
                except (CapacityError, KernelError, ModelError) as error:
                    runs[name].failed, first = str(error), first or error
    if first is not None and all(one.failed for one in runs.values()):
        raise first
    fixed = min(int(one.facts["fixed_bytes"]) for one in runs.values() if not one.failed)  # type: ignore[call-overload]
    done = {name: _candidate(name, one, fixed) for name, one in runs.items() if not one.failed}
    for name, one in runs.items():
        if one.failed:
            known = [c for c in done.values() if not c.predicted]
            guess = without_measuring(name, one.scheme, known, [runs[c.name].scheme for c in known], one.failed)
            assert guess is not None
            done[name] = guess
    return [done[name] for name in wanted.names], [runs[name].scheme for name in wanted.names]


def _run(wanted: Wanted, name: str, runs: _Runs, turn: int, tell: Tell) -> None:
    about = f"{name}, round {turn + 1} of {wanted.rounds}" if wanted.rounds > 1 else name
    tell(f"{about}: loading")
    loaded = load(wanted.model, quantization=name, threads=wanted.threads, isa=wanted.isa, cache_dir=wanted.cache_dir, use_cache=wanted.use_cache,
                  allow_pickle=wanted.allow_pickle)
    if not runs.facts:
        runs.facts = _facts(loaded)
        if wanted.quality:
            tell(f"{about}: what it has lost")
            runs.facts.update(_lost(wanted, loaded))
    tell(f"{about}: prompts")
    prompts = list(prefill(loaded, wanted.load.prompt, repetitions=3))[1:]
    whole = [sum(step.seconds for step in one) for one in prompts]
    runs.prefill.append(_step(loaded, wanted.load.prompt, whole, prompts[0], len(prompts[0])))
    for batch in wanted.batches if turn == 0 and name in SWEPT else sorted({1, wanted.load.users}):
        tell(f"{about}: {batch} at a time")
        steps = decode(loaded, batch, wanted.load.prompt, wanted.steps + WARM)[WARM:]
        runs.decode.setdefault(batch, []).append(_step(loaded, batch, [step.seconds for step in steps], steps, 1))


def _step(loaded: LoadedModel, rows: int, seconds: Sequence[float], steps: Sequence[Timed], together: int) -> Step:
    """`together`: steps that are one (the chunks of a prompt); the cost is that of the mean step times it."""
    weights = cache = operations = 0.0
    for step in steps:
        ops = native_program(loaded).describe(step.shape.rows, step.shape.logit_rows)
        for cost in op_costs(ops, step.shape, loaded.cache_spec):
            weights, cache, operations = weights + cost.weights, cache + cost.cache, operations + cost.operations
    share = together / len(steps)
    return Step(rows, fmean(seconds), pstdev(seconds), weights * share, cache * share, operations * share)


def _facts(loaded: LoadedModel) -> dict[str, object]:
    report = loaded.report
    fixed = report.predicted["base"] + report.predicted["tables"]
    return {"scheme": loaded.plan.short, "weight_bytes": report.weight_bytes, "kv_bytes_per_token": report.kv_bytes_per_token, "fixed_bytes": fixed,
            "notes": tuple(report.notes), "kl": math.nan, "kl_low": math.nan, "kl_high": math.nan}


def _lost(wanted: Wanted, loaded: LoadedModel) -> dict[str, object]:
    """From the receipt in the cache, or measured and kept there."""
    online = Online(loaded, wanted.model, True, wanted.against, wanted.cache_dir, wanted.allow_pickle)
    try:
        receipt = online.kept() or online.measure(threads=wanted.threads)
    except CheckpointError as error:
        return {"notes": (*loaded.report.notes, f"its loss is not known: {error.what}")}
    if receipt.status == "not measured":
        return {"notes": (*loaded.report.notes, f"its loss is not known: {receipt.reason}")}
    kl = receipt.loss.get("kl", {})
    low, high = kl.get("low"), kl.get("high")
    return {"kl": receipt.kl, "kl_low": math.nan if low is None else low, "kl_high": math.nan if high is None else high}


def _candidate(name: str, runs: _Runs, fixed: int) -> Candidate:
    """Of each batch the round with the shortest mean: whatever disturbs a run makes it longer."""
    facts = {**runs.facts, "fixed_bytes": fixed}
    steps = tuple(min(rounds, key=lambda step: step.seconds) for _, rounds in sorted(runs.decode.items()))
    return Candidate(name=name, prefill=min(runs.prefill, key=lambda step: step.seconds), decode=steps, **facts)  # type: ignore[arg-type]
