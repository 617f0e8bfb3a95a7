"""Short runs of every candidate: prompts, decoding at several batches, what it has lost. They run in turns; where memory holds all of them, turn by turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Literal

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

CANDIDATES = ("16bit", "8bit", "W8A8hC8", "4bit", "W4g64A8g64C8", "nf4")
WARM = 3   # decoding steps that are not counted
STEPS = 12  # that are
SWEPT = ("16bit", "8bit", "4bit")  # whose break-even is looked for
CONTEXT = 32  # tokens before a step of the sweep: prompts of many sequences take most of its time
TOGETHER = 0.5  # of the free memory that all candidates may take at once, so that they run in turns step kind by step kind
Tell = Callable[[str], None]
Job = tuple[Literal["prompt", "decode", "sweep"], int]  # what is run, and rows


@dataclass(frozen=True)
class Wanted:
    """model      a folder, a file or a hub id; against: its original, where it came quantized
    names         precisions to try, as --quantization takes them
    load          users and lengths that a choice is made for; prompts are measured at its length, decoding after so many tokens
    batches       numbers of sequences that decode together, ascending, 1 first, to find break-even of those in `swept`
    rounds        how often everything is run, the candidates in turns; the least disturbed round counts
    """

    model: str
    names: tuple[str, ...] = CANDIDATES
    load: Load = field(default_factory=Load)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    swept: tuple[str, ...] = SWEPT
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
    steps: dict[Job, list[Step]] = field(default_factory=dict)
    failed: str = ""


@dataclass
class _Models:
    """Loaded models: all of them at once, or the last one alone."""

    wanted: Wanted
    together: bool = False
    held: dict[str, LoadedModel] = field(default_factory=dict)

    def get(self, name: str) -> LoadedModel:
        if name not in self.held:
            if not self.together:
                self.held.clear()  # before the next one takes its memory
            w = self.wanted
            self.held[name] = load(w.model, quantization=name, threads=w.threads, isa=w.isa, cache_dir=w.cache_dir, use_cache=w.use_cache,
                                   allow_pickle=w.allow_pickle)
        return self.held[name]


def measure(wanted: Wanted, machine: Machine, tell: Tell = lambda what: None) -> tuple[list[Candidate], list[Scheme]]:
    """The candidates in the order of their names, and their schemes. One that cannot be loaded is predicted from the others, and says so.

    Raises SchemeError for a name that cannot be read, and the first error where nothing could be measured at all.
    """
    runs = {name: _Runs(choose(name, machine).plan.default) for name in wanted.names}
    models = _Models(wanted)
    first: OctavoError | None = None
    for name in wanted.names:
        try:
            _learn(wanted, name, runs[name], models, tell)
        except (CapacityError, KernelError, ModelError) as error:
            runs[name].failed, first = str(error), first or error
    able = [name for name in wanted.names if not runs[name].failed]
    models.together = sum(int(runs[name].facts["weight_bytes"]) for name in able) < TOGETHER * machine.memory_available  # type: ignore[call-overload]
    for turn in range(wanted.rounds):
        for name, job in _turns(wanted, able, turn, models.together):
            if runs[name].failed:
                continue
            tell(f"round {turn + 1} of {wanted.rounds}, {name}: {'a prompt' if job[0] == 'prompt' else f'{job[1]} at a time'}")
            try:
                runs[name].steps.setdefault(job, []).append(_run(wanted, job, models.get(name)))
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


def _turns(wanted: Wanted, names: Sequence[str], turn: int, together: bool) -> Iterator[tuple[str, Job]]:
    """Everything once. Together: each job for all names before the next one, so that what drifts on the machine drifts for all; else a model at a time.
    Every other round goes backwards."""
    jobs: list[Job] = [("prompt", wanted.load.prompt), *(("decode", rows) for rows in sorted({1, wanted.load.users})),
                       *(("sweep", rows) for rows in wanted.batches)]
    order = names if turn % 2 == 0 else list(reversed(names))
    pairs = ((name, job) for job in jobs for name in order) if together else ((name, job) for name in order for job in jobs)
    return (pair for pair in pairs if pair[1][0] != "sweep" or pair[0] in wanted.swept)


def _learn(wanted: Wanted, name: str, runs: _Runs, models: _Models, tell: Tell) -> None:
    tell(f"{name}: loading")
    loaded = models.get(name)
    runs.facts = _facts(loaded)
    if wanted.quality:
        tell(f"{name}: what it has lost")
        runs.facts.update(_lost(wanted, loaded))


def _run(wanted: Wanted, job: Job, loaded: LoadedModel) -> Step:
    kind, rows = job
    if kind == "prompt":
        prompts = list(prefill(loaded, rows, repetitions=3))[1:]
        return _step(loaded, rows, [sum(step.seconds for step in one) for one in prompts], prompts[0], len(prompts[0]))
    context = wanted.load.prompt if kind == "decode" else min(CONTEXT, wanted.load.prompt)
    steps = decode(loaded, rows, context, wanted.steps + WARM)[WARM:]
    return _step(loaded, rows, [step.seconds for step in steps], steps, 1)


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
    """From the receipt in the cache, or measured and kept there. Of a model that came quantized, with neither receipt nor original, what the candidate loses
    against it as it came: that tells candidates apart, and a note says so."""
    online = Online(loaded, wanted.model, True, wanted.against, wanted.cache_dir, wanted.allow_pickle)
    try:
        receipt = online.kept() or online.measure(threads=wanted.threads)
    except CheckpointError as error:
        return {"notes": (*loaded.report.notes, f"its loss is not known: {error.what}")}
    since = receipt.result.get("since")
    if receipt.status == "not measured" and since is None:
        return {"notes": (*loaded.report.notes, f"its loss is not known: {receipt.reason}")}
    kl = (since or receipt.loss).get("kl", {})
    low, high = kl.get("low"), kl.get("high")
    notes = (*loaded.report.notes, "its loss is against the model as it came, quantized; --against names the original") if since else tuple(loaded.report.notes)
    mean = receipt.kl if since is None else math.inf if kl["mean"] is None else float(kl["mean"])
    return {"notes": notes, "kl": mean, "kl_low": math.nan if low is None else low, "kl_high": math.nan if high is None else high}


def _candidate(name: str, runs: _Runs, fixed: int) -> Candidate:
    """Of each job the round with the shortest mean: whatever disturbs a run makes it longer."""
    best = {job: min(rounds, key=lambda step: step.seconds) for job, rounds in sorted(runs.steps.items())}
    kinds = {kind: tuple(step for job, step in best.items() if job[0] == kind) for kind in ("prompt", "decode", "sweep")}
    return Candidate(name=name, prefill=kinds["prompt"][0], decode=kinds["decode"], sweep=kinds["sweep"],
                     **{**runs.facts, "fixed_bytes": fixed})  # type: ignore[arg-type]
