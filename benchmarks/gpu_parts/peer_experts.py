"""A mixture of experts in MXFP4: tokens meet a few of many experts. Against the same numbers in bfloat16: torch's grouped product, and one product per expert.

From x [rows, k] and the sorted choices (nobody's time) to y [rows * chosen, n]; gathering rows is in everybody's time. Every call has choices of its own, so
that few rows find their experts in memory, not in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from octavo.kernels.triton import experts
from octavo.kernels.triton.tiles import gpu
from octavo.kernels.triton.weights import GpuWeight, prepare, unpacked
from octavo.qtensor import quantize

from .peers import FEWER_ROUNDS, OURS, device, specs
from .timing import Candidate, in_turn, ratio, spread

CHOICES = 6          # sets of choices that are gone through
GROUPED, LOOP = "torch grouped_mm, bf16", "one bf16 product per expert"


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """{"rows_found": one record for each number of rows, "refused": {rival: why}}"""
    torch.manual_seed(0)
    layer = _layer(case["n"], case["k"], case["count"])
    if case["warm"]:
        for rows in case["rows"]:
            x, chosen = _problem(case, rows)
            _ours(layer, x, chosen[0])()
        return {"compiled": len(case["rows"])}
    wide = torch.stack([unpacked(_one(layer, at)).to(torch.bfloat16) for at in range(layer.count)])
    refused: dict[str, str] = {}
    return {"rows_found": [_compared(case, layer, wide, rows, refused) for rows in case["rows"]], "refused": refused}


def _layer(n: int, k: int, count: int) -> experts.Experts:
    """Random codes under random exponents, as random as MXFP4 can be; a real weight says what they mean."""
    like = prepare(quantize(torch.randn(n, k, device=device()) * 0.02, specs("MXFP4")[0]), specs("MXFP4")[1], device=device())
    assert like.scales is not None
    codes = torch.randint(0, 256, (count, *like.codes.shape), dtype=torch.uint8, device=device())
    scales = torch.randint(117, 122, (count, *like.scales.shape), device=device(), dtype=torch.uint8)
    return experts.Experts(like, codes, scales, None)


def _one(layer: experts.Experts, at: int) -> GpuWeight:
    assert layer.scales is not None
    return replace(layer.like, codes=layer.codes[at], scales=layer.scales[at])


def _problem(case: dict[str, Any], rows: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    x = torch.randn(rows, case["k"], device=device()).to(torch.bfloat16)
    return x, [torch.rand(rows, case["count"], device=device()).topk(case["top"], dim=1).indices for _ in range(CHOICES)]


def _ours(layer: experts.Experts, x: torch.Tensor, chosen: torch.Tensor) -> Callable[[], torch.Tensor]:
    tile = experts.tile_for(layer.like, chosen.numel(), layer.count, gpu(x.device))
    return partial(experts.multiply, x, layer, experts.route(chosen, layer.count, tile.rows), tile)


def _sorted(chosen: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(pairs by expert, the row of each, the ends of the experts' runs)"""
    flat = chosen.reshape(-1)
    order = torch.argsort(flat, stable=True)
    return order, order // chosen.shape[1], torch.bincount(flat, minlength=count).cumsum(0).to(torch.int32)


def _grouped(wide: torch.Tensor, x: torch.Tensor, chosen: torch.Tensor) -> Callable[[], torch.Tensor]:
    _, rows, ends = _sorted(chosen, len(wide))
    product = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    return lambda: product(x[rows], wide.transpose(1, 2), offs=ends)


def _loop(wide: torch.Tensor, x: torch.Tensor, chosen: torch.Tensor) -> Callable[[], torch.Tensor]:
    _, rows, ends = _sorted(chosen, len(wide))
    stops = [0, *ends.tolist()]
    runs = [(at, first, last) for at, (first, last) in enumerate(pairwise(stops)) if last > first]
    y = torch.empty(len(rows), wide.shape[1], dtype=torch.bfloat16, device=x.device)

    def call() -> torch.Tensor:
        given = x[rows]
        for at, first, last in runs:
            torch.mm(given[first:last], wide[at].t(), out=y[first:last])
        return y

    return call


def _compared(case: dict[str, Any], layer: experts.Experts, wide: torch.Tensor, rows: int, refused: dict[str, str]) -> dict[str, Any]:
    x, chosen = _problem(case, rows)
    order = _sorted(chosen[0], layer.count)[0]
    calls: dict[str, list[Callable[[], torch.Tensor]]] = {OURS: [_ours(layer, x, one) for one in chosen]}
    truth = torch.empty(0)
    errors: dict[str, float] = {}
    for name, make in ((LOOP, _loop), (GROUPED, _grouped)):
        try:
            mine = [make(wide, x, one) for one in chosen]
            y = mine[0]().float()
            truth = y if name == LOOP else truth
            errors[name] = float((y - truth).norm() / truth.norm()) if len(truth) else 1e30
            calls[name] = mine
        except Exception as error:  # what a peer raises is its answer
            refused[f"{name}, {rows} rows"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    found = calls[OURS][0]()[order].float()
    off = float((found - truth).norm() / truth.norm()) if len(truth) else 1e30
    candidates = {name: Candidate(mine) for name, mine in calls.items()}
    times = in_turn(candidates, 1 if case["tiny"] else FEWER_ROUNDS)
    met = torch.unique(chosen[0]).numel()
    n, k = layer.like.n, layer.like.k
    peers = {name: {"seconds": spread(seconds), "ratio": ratio(times[OURS], seconds), "error": errors[name], "alike": True,
                    "captured": candidates[name].captured} for name, seconds in times.items() if name != OURS}
    return {"rows": rows, "seconds": spread(times[OURS]), "error": off, "captured": candidates[OURS].captured, "peers": peers, "experts_met": met,
            "bytes": layer.nbytes // layer.count * met + 2 * rows * k + 4 * chosen[0].numel() * n, "operations": 2 * chosen[0].numel() * n * k}
