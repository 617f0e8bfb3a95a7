"""Production load: the model and its original served in turns under the same users, and the lines that this can answer.

A limit in seconds is judged by what was measured, a ratio to the original by its interval (see ratios).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist

import numpy as np

from ..settings import read_settings
from ..traffic import (
    Difference,
    LaunchedServer,
    Load,
    Prompts,
    Recording,
    Result,
    Spread,
    Target,
    after,
    differences,
    first_model,
    measure,
    random_tokens,
    read_prompts,
    spread,
)
from ..traffic.target import Endpoint
from .limits import Limits
from .lines import Line, Status
from .ratios import ratio, turned

RANDOM_PROMPTS = 1000
LONGER, LONGEST = 4, 120.0  # by how much a load is made longer that no request came due in, and seconds at most
TITLES = {"latency_p50": "Latency, median", "latency_p95": "Latency, 95th percentile", "latency_p99": "Latency, 99th percentile",
          "first_token_p95": "First token, 95th percentile", "requests_per_s": "Requests per second", "load": "Production load", "cost": "Cost",
          "memory": "Memory"}


@dataclass(frozen=True)
class Side:
    """A model as `octavo serve` gets it."""

    label: str
    model: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Traffic:
    """What is sent to each side, `runs` times on a server just started, in turns so that what changes about the machine changes for both."""

    load: Load
    runs: int
    endpoint: Endpoint
    file: Path | None
    prompt_tokens: int
    answer_tokens: int


def under_load(sides: Sequence[Side], traffic: Traffic, tell: Callable[[str, Recording | None], None]) -> Iterator[Result]:
    """A result for each run of each side, labelled by side. Where answers take so long that a load had to be made longer, one run of each is all.

    Raises OctavoError where a server does not start or answer.
    """
    prompts: Prompts | None = read_prompts(traffic.file, traffic.answer_tokens, seed=0) if traffic.file is not None else None
    slow = False
    for turn in range(traffic.runs):
        for side in sides:
            what = f"{side.label}, run {turn + 1} of {traffic.runs}"
            tell(f"{what}: starting", None)
            with LaunchedServer(side.model, ["--receipt", "off", "--no-page", *side.options]) as server:
                target = Target(server.url, "", read_settings().api_key, traffic.endpoint)  # the server reads its key from the same place
                target = replace(target, model=first_model(target))
                prompts = prompts or random_tokens(target, traffic.prompt_tokens, traffic.answer_tokens, RANDOM_PROMPTS)
                result = patient(partial(_once, target, prompts, side.label, server, partial(tell, what)), traffic.load)
                slow = slow or result.load["duration"] != traffic.load.duration
                yield result
        if slow:
            break


def patient(once: Callable[[Load, int], Result], load: Load) -> Result:
    """`once(load, asked)`, again and longer where answers take so long that no request came due within the measured time: users had nothing to ask yet."""
    asked = 0
    while True:
        result = once(load, asked)
        if result.summary.requests or load.duration is None or load.duration >= LONGEST:
            return result
        asked += result.prompts["asked"] + 1
        load = replace(load, duration=min(LONGER * load.duration, LONGEST))


def _once(target: Target, prompts: Prompts, label: str, server: LaunchedServer, tell: Callable[[Recording | None], None], load: Load, asked: int) -> Result:
    return measure(target, after(prompts, asked), load, label=label, server=server, on_progress=tell)


def judge(original: Sequence[Result], model: Sequence[Result], limits: Limits, cost_per_hour: float | None) -> list[Line]:
    """The lines of a load, of the runs of both sides."""
    ratios = {one.name: one for one in differences([r.series() for r in original], [r.series() for r in model])}
    before, after = _all(original, "latency"), _all(model, "latency")
    lines = [_time(f"latency_p{share}", getattr(after, f"p{share}"), getattr(before, f"p{share}"), getattr(limits, f"latency_p{share}"),
                   ratios[f"latency p{share}"], limits.latency_ratio, after.count) for share in (50, 95, 99)]
    first = _all(model, "ttft")
    lines.append(_time("first_token_p95", first.p95, _all(original, "ttft").p95, limits.first_token_p95, ratios["ttft p95"], limits.latency_ratio, first.count))
    lines.append(_rate(original, model, limits, ratios["requests/s"]))
    lines.append(_load(model, limits))
    lines.append(_cost(original, model, limits, ratios["tokens/s"], cost_per_hour))
    lines.append(_memory(original, model, limits))
    return lines


def unmeasured(reason: str) -> list[Line]:
    return [Line(name, title, "not measured", reason) for name, title in TITLES.items()]


def _all(results: Sequence[Result], column: str) -> Spread:
    return spread(np.concatenate([getattr(r.series(), column) for r in results]))


def _mean(results: Sequence[Result], name: str) -> float:
    return float(np.mean([getattr(r.summary, name) for r in results]))


def _verdict(checks: Sequence[bool | None]) -> Status:
    """Of what was asked; None: could not be said."""
    return "fail" if False in checks else "pass" if True in checks else "not measured"


def _limits(sign: str, absolute: float | None, unit: str, ratio: str) -> str:
    return ", ".join([*([f"{sign} {absolute:g} {unit}".rstrip()] if absolute is not None else []), *([ratio] if ratio else [])])


def _time(name: str, value: float, before: float, absolute: float | None, difference: Difference, limit: float | None, count: int) -> Line:
    one = ratio(difference, limit, most=True)
    kept = value <= absolute if absolute is not None and math.isfinite(value) else None
    beyond = f"{value:.4g} s is above {absolute:g} s; " if kept is False else ""
    return Line(name, TITLES[name], _verdict([kept, one.kept]), f"{beyond}{one.said}; {count} requests", value, "s", _limits("≤", absolute, "s", one.limit),
                before, one.low, one.high, True)


def _rate(original: Sequence[Result], model: Sequence[Result], limits: Limits, difference: Difference) -> Line:
    value, before = _mean(model, "requests_per_s"), _mean(original, "requests_per_s")
    one = ratio(difference, limits.requests_ratio, most=False)
    kept = value >= limits.requests_per_s if limits.requests_per_s is not None else None
    below = f"{value:.4g} is below {limits.requests_per_s:g} a second; " if kept is False else ""
    evidence = f"{below}{one.said}; {_mean(model, 'tokens_per_s'):.1f} tokens/s against {_mean(original, 'tokens_per_s'):.1f}"
    return Line("requests_per_s", TITLES["requests_per_s"], _verdict([kept, one.kept]), evidence, value, "1/s",
                _limits("≥", limits.requests_per_s, "1/s", one.limit), before, one.low, one.high, True)


def _load(model: Sequence[Result], limits: Limits) -> Line:
    first = model[0]
    requests, failed = sum(r.summary.requests for r in model), sum(r.summary.failed for r in model)
    share = failed / requests if requests else math.nan
    kinds = {kind: detail for r in model for kind, detail in r.summary.error_examples.items()}
    evidence = (f"{first.load['arrivals']}, {sum(r.summary.seconds for r in model):.0f} s in {len(model)} run{'s' if len(model) > 1 else ''}: "
                f"{requests} requests, {failed} failed; "
                f"{first.summary.prompt_tokens:.0f} tokens in, {first.summary.answer_tokens:.0f} out on average; prompts: {first.prompts['name']} "
                f"(sha256 {first.prompts['sha256'][:12]})")
    evidence += "".join(f"; {kind}: {detail}" for kind, detail in kinds.items())
    if (busy := max(r.summary.client_share for r in model)) > 0.5:
        evidence += f"; the client itself took {busy:.0%} of a core"
    status = _verdict([share <= limits.errors if limits.errors is not None and requests else None])
    limit = "" if limits.errors is None else f"≤ {100 * limits.errors:g}%"
    low, high = wilson(failed, requests)
    return Line("load", TITLES["load"], status, evidence, share, "share failed", limit, low=low, high=high)


def wilson(count: int, of: int) -> tuple[float, float]:
    """The interval that holds a share with 95% when `count` of `of` were seen (Wilson 1927); NaN where none were."""
    if not of:
        return math.nan, math.nan
    z = NormalDist().inv_cdf(0.975)
    share, more = count / of, z * z / of
    middle, reach = (share + more / 2) / (1 + more), z * math.sqrt(share * (1 - share) / of + more / (4 * of)) / (1 + more)
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def _cost(original: Sequence[Result], model: Sequence[Result], limits: Limits, difference: Difference, cost_per_hour: float | None) -> Line:
    """Of a token: machine time, which is what money buys; in money where the hour has a price."""
    hours = [1e6 / (rate * 3600) if (rate := _mean(side, "tokens_per_s")) else math.nan for side in (model, original)]
    price = cost_per_hour if cost_per_hour is not None else 1.0
    value, before = hours[0] * price, hours[1] * price
    one = ratio(turned(difference), limits.cost_ratio, most=True)
    absolute = limits.cost if cost_per_hour is not None else None
    kept = value <= absolute if absolute is not None and math.isfinite(value) else None
    evidence = f"{one.said}; for a million tokens of answers at this load"
    if kept is False:
        evidence = f"{value:.4g} is above {absolute:g}; {evidence}"
    if cost_per_hour is None:
        evidence += ", in hours of this machine; --cost-per-hour makes it money"
    if limits.cost is not None and cost_per_hour is None:
        evidence += f", without which the limit of {limits.cost:g} was not judged"
    return Line("cost", TITLES["cost"], _verdict([kept, one.kept]), evidence, value, "per 1M tokens" if cost_per_hour is not None else "h/1M tokens",
                _limits("≤", absolute, "", one.limit), before, one.low, one.high, True)


def _times(limit: float | None) -> str:
    return f"≤ {limit:g} x" if limit is not None else ""


def _memory(original: Sequence[Result], model: Sequence[Result], limits: Limits) -> Line:
    value, before = (max(r.server.get("memory", {}).get("peak_rss", r.server.get("memory", {}).get("rss", math.nan)) for r in side) / 1e6
                     for side in (model, original))
    weights, theirs = (side[0].server.get("weight_bytes", math.nan) / 1e6 for side in (model, original))
    known = math.isfinite(value) and math.isfinite(before)
    checks = [value <= limits.memory_mb if limits.memory_mb is not None and math.isfinite(value) else None,
              value / before <= limits.memory_ratio if limits.memory_ratio is not None and known else None]
    evidence = (f"most resident memory of the server's process, {value / before:.3f} times the original's" if known else "this system does not tell it")
    if math.isfinite(weights) and math.isfinite(theirs):
        evidence += f"; weights {weights:.1f} MB against {theirs:.1f} MB"
    return Line("memory", TITLES["memory"], _verdict(checks), evidence, value, "MB", _limits("≤", limits.memory_mb, "MB", _times(limits.memory_ratio)), before)
