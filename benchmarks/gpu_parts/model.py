"""A model of Llama-3-8B's shape through Octavo's engine: how it loads, how fast it decodes, and how much of a step is not kernels.

Models and engines stay in this worker from case to case, so that precisions can be measured in turn. A decoding rate is what `LONGER - SHORTER` more tokens of
each sequence cost: prompts, starts and ends are the same in both and cancel out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo.engine import Engine, EngineOptions
from octavo.engine.request import Finish, Request, Sampling
from octavo.loading import LoadedModel, load

from .forwards import step_of
from .random_model import LLAMA3_8B, TINY, in_place_of_files
from .timing import spread

PROMPT, SHORTER, LONGER, LENGTH = 64, 32, 160, 512
STEPS = 16  # of a profile


@dataclass
class Loaded:
    model: LoadedModel
    engine: Engine
    facts: dict[str, Any]


LOADED: dict[str, Loaded] = {}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    return {"load": _load, "decode": _decode, "overhead": _overhead}[case["what"]](case)


def loaded(scheme: str, tiny: bool, layers: int) -> Loaded:
    """The model in this precision, loaded once."""
    if scheme in LOADED:
        return LOADED[scheme]
    there = torch.cuda.is_available()
    config = TINY if tiny else LLAMA3_8B | ({"num_hidden_layers": layers} if layers else {})
    if there:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before, began = torch.cuda.memory_allocated() if there else 0, time.perf_counter()
    with in_place_of_files(config):
        model = load("random", quantization=scheme, backend="triton", use_cache=False, max_model_len=64 if tiny else LENGTH)
    seconds = time.perf_counter() - began
    weights: Any = model.bound.weights.values()
    facts = {"plan": model.plan.short, "weights": sum(weight.nbytes for weight in weights), "load_seconds": seconds,
             "notes": list(model.report.notes)}
    if there:
        facts |= {"peak": torch.cuda.max_memory_allocated() - before, "kept": torch.cuda.memory_allocated() - before}
    options = EngineOptions(max_batch=2 if tiny else 128, kv_pages=8 if tiny else 128 * (-(-(PROMPT + LONGER) // 32) + 1), prefix_cache=False,
                            max_batch_tokens=2048)
    LOADED[scheme] = Loaded(model, Engine(model, options).start(), facts)
    return LOADED[scheme]


def _load(case: dict[str, Any]) -> dict[str, Any]:
    """{"weights", "peak": bytes on the GPU, "load_seconds"}; warm: also one run of each batch, which compiles what decoding needs."""
    one = loaded(case["scheme"], case["tiny"], case["layers"])
    if case["warm"]:
        for batch in case["batches"]:
            for tokens in _counts(case["tiny"]):
                _run(one, batch, tokens, case["tiny"])
    return one.facts | {"what": "load", "scheme": case["scheme"]}


def _counts(tiny: bool) -> tuple[int, int]:
    return (2, 4) if tiny else (SHORTER, LONGER)


def _run(one: Loaded, batch: int, tokens: int, tiny: bool) -> float:
    """Seconds until `batch` sequences have so many tokens each, greedily."""
    rng = np.random.default_rng(batch)
    vocabulary, length = one.model.vocab_size, 3 if tiny else PROMPT
    prompts = rng.integers(2, vocabulary, (batch, length)).tolist()
    began = time.perf_counter()
    tickets = [one.engine.submit(Request(tuple(prompt), Sampling(temperature=0, max_tokens=tokens, ignore_eos=True))) for prompt in prompts]
    for ticket in tickets:
        made = 0
        for delta in ticket:
            made += len(delta.tokens)
            if delta.finish not in (None, Finish.LENGTH):
                raise RuntimeError(f"a sequence ended with {delta.finish}: {delta.error}")
        if made != tokens:
            raise RuntimeError(f"{made} tokens came where {tokens} were asked for")
    return time.perf_counter() - began


def _decode(case: dict[str, Any]) -> dict[str, Any]:
    """{"tokens_per_second": {scheme: spread}, "ratios": {scheme: to 16bit, spread}}, precisions in turn."""
    batch, tiny = case["batch"], case["tiny"]
    shorter, longer = _counts(tiny)
    models = {scheme: loaded(scheme, tiny, case["layers"]) for scheme in case["schemes"]}
    rates: dict[str, list[float]] = {scheme: [] for scheme in models}
    for turn in range(case["rounds"] + 1):
        for scheme, one in models.items():
            few, many = _run(one, batch, shorter, tiny), _run(one, batch, longer, tiny)
            if turn:
                rates[scheme].append(batch * (longer - shorter) / max(many - few, 1e-9))
    first = rates[case["schemes"][0]]
    return {"what": "decode", "batch": batch, "tokens_per_second": {scheme: spread(values) for scheme, values in rates.items()},
            "ratios": {scheme: spread([a / b for a, b in zip(values, first, strict=True)]) for scheme, values in rates.items() if values is not first},
            "plans": {scheme: one.model.plan.short for scheme, one in models.items()}}


def _overhead(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step through the engine, of the same step's kernels (profiler), and of its graph (events)."""
    batch, tiny = case["batch"], case["tiny"]
    shorter, longer = _counts(tiny)
    one = loaded(case["scheme"], tiny, case["layers"])
    _run(one, batch, longer, tiny)
    took = sorted(_run(one, batch, longer, tiny) - _run(one, batch, shorter, tiny) for _ in range(case["rounds"]))
    found = {"what": "overhead", "scheme": case["scheme"], "batch": batch, "step": took[len(took) // 2] / (longer - shorter)}
    if not torch.cuda.is_available():
        return found | {"note": "no GPU: kernels were not timed"}
    context = PROMPT + (SHORTER + LONGER) // 2
    pages = -(-(context + STEPS) // 32)
    pool = one.model.new_pool(pages * batch)
    step = step_of([(1, context)] * batch, pages)

    def go() -> None:
        coming = one.model.ahead(step, pool, STEPS)
        if coming is not None:
            list(coming)
        else:
            for _ in range(STEPS):
                one.model.best(one.model.forward(step, pool))

    for _ in range(3):
        go()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    go()
    end.record()
    end.synchronize()
    graph = begin.elapsed_time(end) / 1e3 / STEPS
    found |= {"graph": graph, "outside_graph": 1 - graph / found["step"]}
    kernels = _kernels(go)
    if not kernels:
        return found | {"note": "the profiler saw no kernels"}
    total = sum(seconds for seconds, _ in kernels.values()) / STEPS
    largest = sorted(kernels.items(), key=lambda item: -item[1][0])[:6]
    return found | {"kernels": total, "outside_kernels": 1 - total / found["step"], "launches": sum(count for _, count in kernels.values()) / STEPS,
                    "largest": [[name[:40], seconds / STEPS / total] for name, (seconds, _) in largest]}


def _kernels(go: Any) -> dict[str, tuple[float, int]]:
    """(seconds, launches) of each kernel in `go`, by name; nothing where no profiler can be had."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        go()
        torch.cuda.synchronize()
    found: dict[str, tuple[float, int]] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            seconds, count = found.get(event.name, (0.0, 0))
            found[event.name] = seconds + event.time_range.elapsed_us() / 1e6, count + 1
    return found
