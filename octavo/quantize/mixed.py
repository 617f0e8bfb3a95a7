"""quantize_mixed(): search a plan for a goal, quantize with it by the ordinary way, measure what it lost, and correct the prediction by that.

Everything is made in a hidden folder beside the target (search/kept.py): the target appears whole, with receipt, plan and front, or not at all; and the same
call after an interruption goes on with the sensitivities and the plans that it finds there.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, formats
from ..calibration import Samples
from ..calibration.blocks import Weights
from ..calibration.extra import check_extra
from ..checkpoints import Checkpoint, open_checkpoint
from ..conversion import Report as Written
from ..conversion import Row
from ..errors import QualityError, UsageError
from ..loading import LoadedModel, load, open_model
from ..machine import detect
from ..quality import Windows, compare
from ..quality.receipt import Receipt, beside, read_receipt
from ..quality.receipt_of import receipt_of
from ..quality.texts import EvaluationText
from ..schemes import CacheSpec, Plan, TensorSpec
from . import own
from .kv_cache import cache_of_plan
from .method import options_of
from .run import RECIPE, UNREAD, OnProgress, Report, Wish, check_target, methods_of, quantize, rotations_of, samples_of, target_of
from .search import CONTEXT, OUTER, Candidates, Goal, Kept, Search, Solution, candidates, measure, measure_caches, split, units

HELD = 4         # sequences after those of calibration, on which the result's KL is measured
ROUNDS = 4       # plans that are tried for --max-kl
NEAR = 0.9       # of the KL that is allowed: good enough, no further round
MARGINS = (0.98, 0.94, 0.88, 0.8, 0.65)  # of it are aimed at, the first that gives a plan not tried yet: what is measured is never quite what was predicted
TRELLIS = "trellis"
PLAN, FRONT = "octavo-plan.json", "octavo-front.svg"


@dataclass(frozen=True)
class Trial:
    """A plan that was quantized with. KL in nats per token: `predicted` before, `measured` on held-out text, `receipt` on the receipt's (None: without one)."""

    solution: Solution
    plan: str
    predicted: float
    measured: float
    receipt: float | None
    report: Report

    @property
    def worst(self) -> float:
        """What has to keep a bound."""
        return self.measured if self.receipt is None else max(self.measured, self.receipt)

    def to_json(self) -> dict[str, float | None]:
        return {"predicted": self.predicted, "measured": self.measured, "receipt": self.receipt}


@dataclass
class Outcome:
    """trial: what stands at the target; `tried`: all of them, in order."""

    trial: Trial
    search: Search
    goal: Goal
    tried: list[Trial]
    plan_file: Path
    front_file: Path
    receipt: Receipt | None

    @property
    def report(self) -> Report:
        return self.trial.report

    @property
    def solution(self) -> Solution:
        return self.trial.solution

    @property
    def predicted(self) -> float:
        return self.trial.predicted

    @property
    def measured(self) -> float:
        return self.trial.measured

    def to_json(self) -> dict[str, Any]:
        search, caches = self.search, self.search.caches
        of_cache = {} if caches is None else {"cache": {"precision": search.cache_name(self.solution), "context": caches.context,
                                                        "bytes_per_token": search.cache_bytes(self.solution)}}
        return {"goal": self.goal.to_json(), "bits": search.bits(self.solution), "bytes": search.size(self.solution), **of_cache,
                "input_bits": search.work(self.solution), "gap": self.solution.gap, "predicted_kl": self.predicted, "measured_kl": self.measured,
                "receipt_kl": self.trial.receipt, "tried": [trial.to_json() for trial in self.tried], "plan_file": str(self.plan_file),
                "front_file": str(self.front_file)}


def quantize_mixed(source: str | Path, out: str | Path, wish: Wish, goal: Goal, names: Sequence[str], *, together: bool = False,
                   overwrite: bool = False, threads: int | None = None, revision: str | None = None, allow_pickle: bool = False,
                   context: int | None = None, receipt_text: EvaluationText | None = None, on_measured: OnProgress | None = None,
                   on_progress: OnProgress | None = None, **rest: Any) -> Outcome:
    """`names`: the candidates, of weights (W4g64, W8A8) and of the key-value cache (C8, K8V4, C4); of `wish`, the scheme is what the search decides.
    `rest`: as `quantize`.

    context        tokens whose cache counts as size, where caches are among the candidates; None: CONTEXT, or fewer where the model takes fewer
    receipt_text   what the receipt is measured on; None: no receipt is written. A bound on KL holds there and on held-out calibration text.

    Writes the plan and the plot of the front into the folder `out` (beside it, where it is a file). Raises what `quantize` does, and UsageError where the
    goal cannot be reached; for a bound on KL that may be after ROUNDS plans. Then nothing stands at `out`, and the hidden folder keeps what was measured
    for another goal.
    """
    check_extra()
    target = target_of(out, overwrite)
    if wish.data is None:
        raise UsageError("a mixed search needs calibration text", where="--data", remedy="name a .txt or .jsonl file of text like what the model will meet")
    method, transforms = methods_of(wish)
    checkpoint, model, found = open_model(open_checkpoint(source, revision=revision, allow_pickle=allow_pickle), wish.tokens)
    for_weights, for_caches = split(names)
    _check_caches(for_caches, goal, wish)
    possible = candidates(checkpoint, model, found, for_weights, keep=wish.keep)
    possible.check(goal)
    _check_method(possible, wish.method.lower())
    to = rest.get("to", "compressed-tensors")
    for which in range(max(map(len, possible.wanted.values()))):
        chosen = {name: schemes[which % len(schemes)] for name, schemes in possible.wanted.items()}
        rotations_of(method, chosen, {name: checkpoint.tensors[found[name]].shape[-1] for name in chosen}, to)
    caches = [cache_of_plan(Plan.parse(name), model.layers, f"--candidates {name}") for name in for_caches]
    if not caches:
        caches = [cache_of_plan(Plan.parse(wish.cache), model.layers, f"--scheme {wish.cache}") if wish.cache else None]
    for cache in caches:
        _check_format(checkpoint, found, possible, target, to, wish, together, cache)
    if context is not None and not 1 <= context <= model.natural_len:
        raise UsageError(f"{context} tokens", where="--context", remedy=f"this model takes 1 to {model.natural_len}")
    samples = samples_of(checkpoint, model, wish, HELD)
    if len(samples.ids) < wish.sequences + HELD:
        raise UsageError(f"holds {len(samples.ids)} sequences", where=str(wish.data),
                         remedy=f"{HELD} more than --sequences are needed, to measure the result on")
    kept = Kept(target, {"octavo": __version__, "recipe": RECIPE, "source": checkpoint.content_key(rest.get("cache_dir")), "samples": samples.digest,
                         "sequences": wish.sequences, "seed": wish.seed, "keep": list(wish.keep), "observer": wish.observer, "cache": wish.cache, "to": to,
                         "method": options_of(method), "transforms": [options_of(one) for one in transforms], "candidates": list(names),
                         "together": together, "receipt": receipt_text and receipt_text.sha256, "shard_size": rest.get("shard_size")})
    work = _Trials(source, out, kept, wish, samples, receipt_text, threads,
                   {"threads": threads, "revision": revision, "allow_pickle": allow_pickle, "on_progress": on_progress, **rest},
                   {"revision": revision, "allow_pickle": allow_pickle})
    sensitivities = kept.sensitivities(possible.wanted)
    if sensitivities is None:
        search = measure(model, Weights(checkpoint, found), samples.ids[: wish.sequences], possible, method, threads=threads or detect(None).cores,
                         together=together, seed=wish.seed, on_progress=_timed(on_measured))
        kept.keep_sensitivities(search.sensitivities)
    else:
        search = Search(possible, sensitivities, together)
    if for_caches:
        tokens, one_for_all = context or min(CONTEXT, model.natural_len), to != own.TARGET
        measured = kept.caches(for_caches, tokens, one_for_all)
        if measured is None:
            measured = measure_caches(work.original, for_caches, tokens, one_for_all)
            kept.keep_caches(measured)
        search = replace(search, caches=measured)
    try:
        search, best, tried = _try(search, goal, kept, work)
    except (UsageError, QualityError):
        kept.leave_only([])
        raise
    if not kept.place(best.plan).exists():  # known from an earlier run for another goal, which did not want it
        best = work.make(best.solution, best.plan, best.predicted)
    outcome = Outcome(best, search, goal, tried, *_files(target), work.receipt(best.plan))
    _write(outcome, kept.place(best.plan), samples, names)
    target_of(out, overwrite)
    kept.publish(best.plan)
    return outcome


def _try(search: Search, goal: Goal, kept: Kept, work: _Trials) -> tuple[Search, Trial, list[Trial]]:
    """(the search with its predictions corrected, the trial to be taken, all of them)."""
    tried: list[Trial] = []
    best: Trial | None = None
    solution: Solution | None = search.choose(goal)
    while solution is not None and len(tried) < ROUNDS:
        trial = work.trial(search, solution)
        if not math.isfinite(trial.worst):
            raise QualityError("gives no numbers once it is quantized", where=str(work.source), remedy="choose another --method, or candidates with more bits")
        tried.append(trial)
        search = replace(search, factor=trial.worst / max(solution.cost, 1e-12))
        if goal.kl is None:
            return search, trial, tried
        if trial.worst <= goal.kl:  # no plan is tried that is larger than the best one
            best = trial
        kept.leave_only([] if best is None else [best.plan])
        if NEAR * goal.kl <= trial.worst <= goal.kl:
            break
        solution = _next(search, goal, tried, best)
    if best is None:
        least = min(trial.worst for trial in tried)
        raise UsageError(f"{len(tried)} plans were tried, and the best of them loses {least:.4g} nats per token, not {goal.kl:g}", where="--max-kl",
                         remedy="allow more, or name --candidates with more bits; what was measured is kept for the same candidates")
    return search, best, tried


def _next(search: Search, goal: Goal, tried: Sequence[Trial], best: Trial | None) -> Solution | None:
    """The plan to be tried after these; None where there is none."""
    assert goal.kl is not None
    known = {trial.solution.choice for trial in tried}
    for margin in MARGINS:
        try:
            solution = search.choose(replace(goal, kl=goal.kl * margin))
        except UsageError:
            if best is None and margin == MARGINS[0]:
                raise
            return None
        if solution.choice not in known:
            return solution if best is None or search.amount(solution, goal) < search.amount(best.solution, goal) else None
        if tried[-1].worst <= goal.kl:  # all that is allowed is used, as far as is known
            return None
    return None


@dataclass
class _Trials:
    """Quantizes with plans and measures, or reads what was measured. `how`: arguments of `quantize`; `reading`: of whatever opens the source."""

    source: str | Path
    out: str | Path
    kept: Kept
    wish: Wish
    samples: Samples
    text: EvaluationText | None
    threads: int | None
    how: dict[str, Any]
    reading: dict[str, Any]

    def trial(self, search: Search, solution: Solution) -> Trial:
        plan = str(search.plan(solution))
        known = self.kept.trial(plan)
        if known is None:
            return self.make(solution, plan, search.predicted(solution))
        return Trial(solution, plan, search.predicted(solution), known["measured"], known["receipt"], _report(known["report"]))

    def make(self, solution: Solution, plan: str, predicted: float) -> Trial:
        place = self.kept.place(plan)
        place.parent.mkdir(exist_ok=True)
        report = quantize(self.source, place, replace(self.wish, scheme=plan, include=OUTER), overwrite=True, **self.how)
        report.written.out, report.samples = str(self.out), self.samples.name
        report.notes = [note for note in report.notes if not note.startswith(UNREAD)]  # the search has read it
        quantized = load(place, use_cache=False, threads=self.threads)
        held = self.samples.ids[self.wish.sequences :]
        measured = compare(self.original, quantized, Windows(held, np.full(len(held), held.shape[1] - 1)), threads=self.threads).kl.value
        del quantized
        receipt = None
        if self.text is not None:
            made = receipt_of(self.source, place, settings={"verb": "quantize", **report.settings}, calibration=self._calibration,
                              output_errors=report.errors if report.of_outputs else None, text=self.text, threads=self.threads, **self.reading)
            receipt = None if math.isnan(made.kl) else made.kl
        self.kept.keep_trial(plan, {"measured": measured, "receipt": receipt, "report": asdict(report)})
        return Trial(solution, plan, predicted, measured, receipt, report)

    def receipt(self, plan: str) -> Receipt | None:
        return None if self.text is None else read_receipt(beside(self.kept.place(plan)))

    @cached_property
    def original(self) -> LoadedModel:
        return load(self.source, quantization="16bit", use_cache=False, threads=self.threads, **self.reading)

    @property
    def _calibration(self) -> dict[str, Any]:
        return {"name": self.samples.name, "sha256": self.samples.digest, "sequences": self.wish.sequences, "tokens": self.wish.tokens, "seed": self.wish.seed}


def _report(held: Mapping[str, Any]) -> Report:
    """The inverse of asdict."""
    written = held["written"]
    return Report(**{**held, "written": Written(**{**written, "rows": [Row(**row) for row in written["rows"]]})})


def _timed(on_measured: OnProgress | None) -> Callable[[int, int], None] | None:
    began = time.perf_counter()
    return None if on_measured is None else lambda done, of: on_measured(done, of, time.perf_counter() - began)


def _check_format(checkpoint: Checkpoint, found: Mapping[str, str], possible: Candidates, target: Path, to: str, wish: Wish, together: bool,
                  cache: TensorSpec | CacheSpec | None) -> None:
    """Raises UsageError where the format `to` cannot hold the candidates beside each other: before anything is measured."""
    if to == own.TARGET:
        return
    for shift in range(max(len(schemes) for schemes in possible.wanted.values())):
        turns = [(name, place + shift) for place, unit in enumerate(units(possible.wanted, together)) for name in unit]
        chosen = {name: possible.wanted[name][turn % len(possible.wanted[name])] for name, turn in turns}
        try:
            check_target(checkpoint, found, {name: scheme for name, scheme in chosen.items() if scheme.weight.quantized}, target, to, wish, True, cache)
        except UsageError as error:
            first = error.what.partition("; ")[0]  # of several reasons
            raise UsageError(first + ")" * (first.count("(") - first.count(")")), where=f"--to {to}",
                             remedy="a search may write --to compressed-tensors (many integers, FP8) or --to octavo; or name other --candidates") from None


def _check_caches(names: Sequence[str], goal: Goal, wish: Wish) -> None:
    """Raises UsageError where caches cannot take part."""
    if names and goal.bits is not None:
        raise UsageError("counts weights, not a key-value cache", where="--target-bits", remedy="give --target-size or --max-kl, or leave the C candidates out")
    if names and wish.cache:
        raise UsageError(f"says what the key-value cache is, and --candidates {', '.join(names[1:])} do so, too", where=f"--scheme {wish.cache}",
                         remedy="leave one of them out")


def _check_method(possible: Candidates, method: str) -> None:
    """Raises UsageError where the method does not round to a candidate: before anything is measured."""
    for name, schemes in possible.wanted.items():
        for scheme in schemes:
            trellis = formats.get(scheme.weight.format).kind == "trellis"
            if name not in OUTER and scheme.weight.quantized and trellis != (method == TRELLIS):
                raise UsageError(f"{method} does not round to {scheme}", where="--candidates",
                                 remedy="--method trellis rounds to Wtcq2, Wtcq3 and Wtcq4, and to nothing else; the other methods do not")


def _files(target: Path) -> tuple[Path, Path]:
    if target.suffix:
        return target.with_name(f"{target.stem}.{PLAN}"), target.with_name(f"{target.stem}.{FRONT}")
    return target / PLAN, target / FRONT


def _write(outcome: Outcome, place: Path, samples: Samples, names: Sequence[str]) -> None:
    """Plan, front, and what the receipt says of the search, beside the checkpoint in the making."""
    search, (plan_file, front_file) = outcome.search, _files(place)
    points = [[search.size(one), search.predicted(one)] for one in search.front]
    about = outcome.to_json()
    plan = search.plan(outcome.solution).to_json()
    plan_file.write_text(json.dumps({**plan, "search": {**about, "front": points}}, indent=1), encoding="utf-8")
    title = f"{outcome.report.method}: size and loss of {len(search.front)} plans"
    front_file.write_text(search.picture(title, outcome.solution, outcome.measured), encoding="utf-8")
    if outcome.receipt is not None:
        kept = ("goal", "bits", "bytes", "cache", "predicted_kl", "measured_kl")
        outcome.receipt.settings["search"] = {**{name: about[name] for name in kept if name in about}, "candidates": list(names),
                                              "plans_tried": len(outcome.tried),
                                              "measured_on": f"{HELD} sequences of {samples.name} that calibration did not see"}
        outcome.receipt.write(beside(place))
