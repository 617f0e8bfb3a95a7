"""validate(): measures everything on the list, one thing after the other, and judges it."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import OctavoError
from ..machine import detect
from ..quality import EvaluationText
from ..quality.pair import Loader, Pair, compare_pair
from ..traffic import Recording, Result
from ..traffic.target import Endpoint
from . import accuracy, alerts, documented, load
from .limits import Limits
from .lines import Line, Report

if TYPE_CHECKING:
    from ..loading import LoadedModel

POINTS = 300  # of a curve
Tell = Callable[[str, Recording | None], None]


@dataclass(frozen=True)
class Wanted:
    """load_model, load_original   as `octavo evaluate` loads them
    model, original   as they are served
    asked, asked_original   the precision asked for, None: as stored
    traffic   its endpoint is chosen here where `any_endpoint`: chat where the model has a template
    command   what was typed, for the record
    usual_context   tokens of a window where `context` is None; less where the models take less
    """

    load_model: Loader
    load_original: Loader
    model: load.Side
    original: load.Side
    text: EvaluationText
    traffic: load.Traffic
    limits: Limits
    alerts: Path
    asked: str | None = None
    asked_original: str | None = None
    any_endpoint: bool = True
    context: int | None = None
    usual_context: int = 512
    windows: int | None = None
    cost_per_hour: float | None = None
    allow_pickle: bool = False
    cache_dir: Path | None = None
    command: str = ""


def validate(wanted: Wanted, tell: Tell = lambda what, recording: None) -> Report:
    """Go through the list. `tell(what, recording)` hears what is being done; recording: of a load under way.

    Raises OctavoError where one of the two models cannot be loaded or compared: then there is nothing to validate. What fails later is a line's evidence.
    """
    began = time.monotonic()
    report = Report(wanted.model.model, wanted.original.model, wanted.limits)
    machine = detect(None)
    report.settings = {"command": wanted.command, "versions": {"octavo": __version__, "numpy": np.__version__, "python": platform.python_version()},
                       "machine": {"processor": machine.cpu, "isa": machine.isa, "fingerprint": machine.fingerprint, "cores": machine.cores,
                                   "system": platform.platform()}}
    tell("accuracy", None)
    lines, endpoint = _accuracy(wanted, report)
    traffic = replace(wanted.traffic, endpoint=endpoint)
    report.settings["load"] = {"arrivals": str(traffic.load.arrivals), "duration": traffic.load.duration, "requests": traffic.load.requests,
                               "warmup": traffic.load.warmup, "runs": traffic.runs, "endpoint": endpoint, "prompts": str(traffic.file or "random words")}
    measured = _load(wanted, traffic, report, tell)
    report.lines = [*measured[:5], *lines[:3], *measured[5:], lines[3], alerts.alerts(wanted.alerts)]
    report.settings["limits"] = wanted.limits.to_json()
    report.seconds = time.monotonic() - began
    return report


def _accuracy(wanted: Wanted, report: Report) -> tuple[list[Line], Endpoint]:
    """Accuracy's lines and that of the settings, while the models are in memory; the endpoint to ask. They are gone afterwards: servers load their own."""
    facts: dict[str, dict[str, Any]] = {}
    chats: dict[str, bool] = {}

    def told(which: str, loader: Loader, side: load.Side, asked: str | None) -> LoadedModel:
        """What is to be known of a model is asked while it is there: the other may have to go before the next comes."""
        one = loader()
        facts[which] = documented.facts(side.model, asked, one, side.options, wanted.allow_pickle, wanted.cache_dir)
        chats[which] = one.text.has_chat_template
        return one

    pair = compare_pair(lambda: told("model", wanted.load_model, wanted.model, wanted.asked),
                        lambda: told("original", wanted.load_original, wanted.original, wanted.asked_original), wanted.text,
                        context=wanted.context, usual=wanted.usual_context, windows=wanted.windows)
    receipt = documented.receipt_beside(wanted.model.model)
    lines = accuracy.accuracy(pair.comparison, wanted.text, wanted.limits, receipt.calibration if receipt is not None else None)
    report.notes += pair.notes
    report.loss = pair.comparison.to_json()
    report.curves["KL divergence by position in the text"] = _by_position(pair)
    report.settings["text"] = {"name": wanted.text.name, "sha256": wanted.text.sha256, "context": pair.context, "windows": len(pair.windows.tokens)}
    report.settings |= facts
    report.precision, report.original_precision = facts["model"]["scheme"], facts["original"]["scheme"]
    if facts["model"].get("sha256") == facts["original"].get("sha256") and all(
            facts["model"][name] == facts["original"][name] for name in ("plan", "cache", "serve_options")):
        report.notes.append("model and original are the same files in the same precision: this compares the model with itself")
    lines.append(documented.documented(facts["model"], facts["original"]))
    endpoint: Endpoint = ("chat" if all(chats.values()) else "completions") if wanted.any_endpoint else wanted.traffic.endpoint
    del pair
    gc.collect()
    return lines, endpoint


def _by_position(pair: Pair) -> dict[str, tuple[list[float], list[float]]]:
    places = pair.comparison.kl_by_position()
    return {"model": ([(start + stop) / 2 for start, stop, _ in places], [kl.value for _, _, kl in places])}


def _load(wanted: Wanted, traffic: load.Traffic, report: Report, tell: Tell) -> list[Line]:
    results: list[Result] = []
    sides = [wanted.original, wanted.model]
    broke = ""
    try:
        for result in load.under_load(sides, traffic, tell):
            results.append(result)
    except OctavoError as error:
        broke = f"the load broke off at the {sides[len(results) % 2].label}: {error}"
        report.notes.append(broke)
    report.load = [{name: value for name, value in r.to_json().items() if name != "requests"} for r in results]
    before, after = ([r for r in results if r.label == side.label] for side in sides)
    reason = broke or "no request that came due within the measured time was answered: raise --duration, or lower --users"
    if all(any(r.summary.requests > r.summary.failed for r in own) for own in (before, after)):
        _record(traffic, report, before, after)
        lines = load.judge(before, after, wanted.limits, wanted.cost_per_hour)
    else:
        lines = _failed_load(after, reason) if after else load.unmeasured(reason)
    if broke and sides[len(results) % 2] is wanted.model:  # a server that does not come up, or goes, bears no load
        lines = [replace(line, status="fail", evidence=f"{broke}; {line.evidence}" if line.evidence != broke else broke) if line.name == "load" else line
                 for line in lines]
    return lines


def _record(traffic: load.Traffic, report: Report, before: Sequence[Result], after: Sequence[Result]) -> None:
    """What the page and the file hold of a load that was measured."""
    report.settings["load"] = {**after[0].load, "runs": len(after), "endpoint": traffic.endpoint, "prompts": after[0].prompts}
    if traffic.load.duration is not None and after[0].load["duration"] != traffic.load.duration:
        report.notes.append(f"answers took so long that hardly a user asked anew within {traffic.load.duration:g} s: one run of each, of "
                            f"{after[0].load['duration']:g} s, took the place of {traffic.runs}")
    both = list(zip(("original", "model"), (before, after), strict=True))
    report.curves["Share of requests answered within a time"] = {label: _answered(own) for label, own in both}
    report.curves["Tokens per second"] = {label: (own[0].summary.timeline["at"], own[0].summary.timeline["tokens_per_s"]) for label, own in both}


def _failed_load(after: Sequence[Result], reason: str) -> list[Line]:
    """Nothing can be compared, but that requests fail was measured."""
    requests, failed = sum(r.summary.requests for r in after), sum(r.summary.failed for r in after)
    if not failed:
        return load.unmeasured(reason)
    return [replace(line, status="fail", value=failed / requests, unit="share failed", evidence=f"{failed} of {requests} requests failed; {reason}")
            if line.name == "load" else line for line in load.unmeasured(reason)]


def _answered(results: Sequence[Result]) -> tuple[list[float], list[float]]:
    """The share of requests that had ended after each time, of all runs."""
    latency = np.sort(np.concatenate([r.series().latency for r in results]))
    share = np.arange(1, len(latency) + 1) / max(len(latency), 1)
    keep = np.unique(np.linspace(0, len(latency) - 1, min(POINTS, len(latency))).astype(int))
    return latency[keep].tolist(), share[keep].tolist()
