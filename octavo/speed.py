"""Rates of prompts and answers as the engine computes them, their spread, and how near they come to the machine's ceilings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from .ceilings import Ceilings, Rates
from .kernels.costs import Cost, op_costs, step_least
from .workloads import ROWS, Timed, decode, native_program, prefill

if TYPE_CHECKING:
    from .loading import LoadedModel
    from .machine import Machine

WARM_STEPS = 4  # of decoding, not counted: caches and the team wake up


@dataclass(frozen=True)
class Row:
    """One measured rate, in tokens per second of all sequences together.

    prompt, batch         tokens before the answer, or of the prompt that was computed; sequences computed together
    tokens_per_s          median over the repetitions; min, max: the slowest and the fastest of them
    steps, step_seconds   steps that were measured; median seconds of one (a prompt's step is a chunk)
    outside_native_share  part of the time that Python took: scheduling, sampling, text
    weight_bytes, cache_bytes, row_bytes, int_ops, float_ops   of a step, at least (kernels/costs.py); mean over the steps
    least_step_seconds    of the same, at the ceilings; share_of_ceiling: that, over the measured time
    bound                 what sets the least time: bytes or operations
    """

    what: Literal["prefill", "decode"]
    prompt: int
    batch: int
    tokens_per_s: float
    min: float
    max: float
    repetitions: int
    steps: int
    step_seconds: float
    outside_native_share: float
    weight_bytes: float
    cache_bytes: float
    row_bytes: float
    int_ops: float
    float_ops: float
    least_step_seconds: float
    share_of_ceiling: float
    bound: Literal["bytes", "operations"]


def measure(loaded: LoadedModel, rates: Rates, *, prompts: Sequence[int] = (512, 2048), batches: Sequence[int] = (1, 16, 32), new: int = 128,
            context: int = 128, repetitions: int = 5, note: Callable[[str, int, int], None] = lambda what, done, total: None) -> Iterator[Row]:
    """One row per prompt, then one per batch, as they are done. note(what is measured, steps done, steps in all).

    A prompt is run repetitions + 1 times, the first of which does not count. A batch decodes once: its `new` steps are cut into `repetitions`
    stretches. Raises UsageError for what the model cannot take.
    """
    for prompt in prompts:
        total = (repetitions + 1) * -(-prompt // ROWS)
        steps = _counter(f"prefill {prompt}", total, note)
        runs = list(prefill(loaded, prompt, repetitions=repetitions + 1, note=steps))[1:]
        yield _row(loaded, rates, "prefill", prompt, 1, prompt, runs)
    for batch in batches:
        steps = _counter(f"decode, batch {batch}", -(-batch * context // ROWS) + new + WARM_STEPS, note)
        timed = decode(loaded, batch, context, new + WARM_STEPS, note=steps)[WARM_STEPS:]
        cuts = [new * i // min(repetitions, new) for i in range(min(repetitions, new) + 1)]
        yield _row(loaded, rates, "decode", context, batch, batch, [timed[a:b] for a, b in pairwise(cuts)])


def _row(loaded: LoadedModel, rates: Rates, what: Literal["prefill", "decode"], prompt: int, batch: int, tokens: int, runs: list[list[Timed]]) -> Row:
    """tokens: of a run of prefill, of a step of decode."""
    steps = [step for run in runs for step in run]
    speeds = [tokens * (1 if what == "prefill" else len(run)) / sum(step.seconds for step in run) for run in runs]
    whole, least, seconds = Cost(), 0.0, sum(step.seconds for step in steps)
    for step in steps:
        ops = native_program(loaded).describe(step.shape.rows, step.shape.logit_rows)
        costs = op_costs(ops, step.shape, loaded.cache_spec)
        whole, least = whole + sum(costs, Cost()), least + step_least(costs, rates)
    n = len(steps)
    mean = Cost(*(value / n for value in vars(whole).values()))
    computing = mean.ints / rates.ints + mean.floats / rates.floats
    return Row(
        what, prompt, batch, median(speeds), min(speeds), max(speeds), len(runs), n, median(step.seconds for step in steps),
        1 - sum(step.forward_seconds for step in steps) / seconds, mean.weights, mean.cache, mean.rows, mean.ints, mean.floats, least / n, least / seconds,
        "operations" if computing >= least / n * 0.999 else "bytes")


def _counter(what: str, total: int, note: Callable[[str, int, int], None]) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        note(what, min(done, total), total)

    note(what, 0, total)
    return count


def as_json(loaded: LoadedModel, machine: Machine, ceilings: Ceilings, threads: int, rows: Sequence[Row]) -> dict[str, Any]:
    """The report of `octavo speed --json`."""
    rates = ceilings.of(threads)
    return {
        "machine": {
            "cpu": machine.cpu, "isa": machine.isa, "cores": machine.cores, "threads": threads, "fingerprint": machine.fingerprint,
            "ceilings": {"threads": threads, "int8_ops_per_s": rates.ints, "float_ops_per_s": rates.floats,
                         "read_bytes_per_s": {str(size): rate for size, rate in rates.read}},
        },
        "model": loaded.name, "scheme": str(loaded.plan), "rows": [asdict(row) for row in rows],
    }
