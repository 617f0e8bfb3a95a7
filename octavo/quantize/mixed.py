"""quantize_mixed(): search a plan for a goal, quantize with it by the ordinary way, measure what it lost, and correct the prediction by that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration.blocks import Weights
from ..calibration.extra import check_extra
from ..checkpoints import open_checkpoint
from ..errors import UsageError
from ..loading import load, open_model
from ..machine import detect
from ..quality import Windows, compare
from .run import OnProgress, Report, Wish, methods_of, quantize, samples_of, target_of
from .search import OUTER, Goal, Search, Solution, candidates, measure

HELD = 4         # sequences after those of calibration, on which the result's KL is measured
ROUNDS = 4       # plans that are tried for --max-kl
NEAR = 0.9       # of the KL that is allowed: good enough, no further round
MARGIN = 0.98    # of it is aimed at, since what is measured is never quite what was predicted
PLAN, FRONT = "octavo-plan.json", "octavo-front.svg"


@dataclass
class Outcome:
    """measured: KL in nats per token on held-out text; `tried`: (predicted, measured) of each plan that was quantized with."""

    report: Report
    search: Search
    solution: Solution
    goal: Goal
    predicted: float
    measured: float
    tried: list[tuple[float, float]]
    plan_file: Path
    front_file: Path

    def to_json(self) -> dict[str, Any]:
        return {"goal": {key: value for key, value in vars(self.goal).items() if value is not None}, "bits": self.search.bits(self.solution),
                "bytes": self.search.size(self.solution), "predicted_kl": self.predicted, "measured_kl": self.measured,
                "tried": [{"predicted": p, "measured": m} for p, m in self.tried], "plan_file": str(self.plan_file), "front_file": str(self.front_file)}


def quantize_mixed(source: str | Path, out: str | Path, wish: Wish, goal: Goal, names: Sequence[str], *, together: bool = False,
                   overwrite: bool = False, threads: int | None = None, revision: str | None = None, allow_pickle: bool = False,
                   on_measured: OnProgress | None = None, on_progress: OnProgress | None = None, **rest: Any) -> Outcome:
    """`names`: the candidates; of `wish`, the scheme is what the search decides. `rest`: as `quantize`.

    Writes the plan and the plot of the front into the folder `out` (beside it, where it is a file). Raises what `quantize` does, and UsageError where the
    goal cannot be reached; for a bound on KL that is after ROUNDS plans, and the best of them stays at `out`.
    """
    check_extra()
    target = target_of(out, overwrite)
    if wish.data is None:
        raise UsageError("a mixed search needs calibration text", where="--data", remedy="name a .txt or .jsonl file of text like what the model will meet")
    method, _ = methods_of(wish)
    checkpoint, model, found = open_model(open_checkpoint(source, revision=revision, allow_pickle=allow_pickle), wish.tokens)
    possible = candidates(checkpoint, model, found, names, keep=wish.keep)
    samples = samples_of(checkpoint, model, wish, HELD)
    if len(samples.ids) < wish.sequences + HELD:
        raise UsageError(f"holds {len(samples.ids)} sequences", where=str(wish.data),
                         remedy=f"{HELD} more than --sequences are needed, to measure the result on")
    began = time.perf_counter()
    tell: Callable[[int, int], None] | None = None
    if on_measured is not None:
        def tell(done: int, of: int) -> None:
            on_measured(done, of, time.perf_counter() - began)
    search = measure(model, Weights(checkpoint, found), samples.ids[: wish.sequences], possible, method, threads=threads or detect(None).cores,
                     together=together, seed=wish.seed, on_progress=tell)
    held = samples.ids[wish.sequences :]
    original = load(source, quantization="16bit", use_cache=False, threads=threads, revision=revision, allow_pickle=allow_pickle)
    tried: list[tuple[float, float]] = []
    aim = goal
    while True:
        solution = search.choose(aim)
        predicted = search.predicted(solution)
        plan = search.plan(solution)
        report = quantize(source, out, replace(wish, scheme=str(plan), include=OUTER), overwrite=overwrite or bool(tried), threads=threads, revision=revision,
                          allow_pickle=allow_pickle, on_progress=on_progress, **rest)
        quantized = load(out, use_cache=False, threads=threads)
        measured = compare(original, quantized, Windows(held, np.full(len(held), held.shape[1] - 1)), threads=threads).kl.value
        del quantized
        tried.append((predicted, measured))
        search = replace(search, factor=search.factor * measured / max(predicted, 1e-12))
        outcome = Outcome(report, search, solution, goal, predicted, measured, tried, *_files(target))
        if goal.kl is None or NEAR * goal.kl <= measured <= goal.kl or (measured <= goal.kl and len(tried) >= ROUNDS):
            break
        if len(tried) >= ROUNDS:
            _write(outcome, plan.to_json())
            raise UsageError(f"{ROUNDS} plans were tried, and the last one loses {measured:.4g} nats per token, not {goal.kl:g}", where="--max-kl",
                             remedy=f"the result stands at {out}; allow more, or name --candidates with more bits")
        aim = Goal(kl=goal.kl * MARGIN)
        if search.choose(aim).choice == solution.choice:
            break
    _write(outcome, plan.to_json())
    return outcome


def _files(target: Path) -> tuple[Path, Path]:
    if target.suffix:
        return target.with_name(f"{target.stem}.{PLAN}"), target.with_name(f"{target.stem}.{FRONT}")
    return target / PLAN, target / FRONT


def _write(outcome: Outcome, plan: dict[str, Any]) -> None:
    search = outcome.search
    points = [[search.size(one), search.predicted(one)] for one in search.front]
    outcome.plan_file.write_text(json.dumps({**plan, "search": {**outcome.to_json(), "front": points}}, indent=1), encoding="utf-8")
    title = f"{outcome.report.method}: size and loss of {len(search.front)} plans"
    outcome.front_file.write_text(search.picture(title, outcome.solution, outcome.measured), encoding="utf-8")
