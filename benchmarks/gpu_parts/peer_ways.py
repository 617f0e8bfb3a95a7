"""One product in every way that `octavo tune` would try: the usual kernel, other tiles, torch's libraries; for those who tune kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from octavo.kernels.triton import choices
from octavo.kernels.triton.tiles import gpu
from octavo.kernels.triton.weights import GpuWeight, linear, prepare
from octavo.qtensor import quantize

from .peers import FEWER_ROUNDS, copies, device, specs
from .timing import Candidate, in_turn, ratio, spread


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """{"ways": {name: {"seconds", "ratio": how many times faster than the usual kernel, "error": distance from its result}}, "refused": {name: why}}"""
    torch.manual_seed(0)
    spec, activation = specs(case["precision"])
    weight = prepare(quantize(torch.randn(case["n"], case["k"], device=device()) * 0.02, spec), activation, device=device())
    (rows,) = case["rows"]
    x = torch.randn(rows, weight.k, device=device()).to(torch.bfloat16)
    names = choices.names(weight, choices.ROWS[choices.bucket_of(rows)], gpu(x.device))
    usual = _call(weight, x, choices.USUAL)
    found: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    sound: list[str] = []
    for name in names:
        try:
            y = _call(weight, x, name).double()
            found[name] = {"error": float((y - usual.double()).norm() / usual.double().norm())}
            sound.append(name)
        except Exception as error:  # what a tile does not fit into, or a library refuses, is its answer
            refused[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if case["warm"]:
        return {"compiled": len(sound)}
    many = copies(weight, weight.nbytes)
    times = in_turn({name: Candidate([partial(_call, one, x, name) for one in many]) for name in sound}, 1 if case["tiny"] else FEWER_ROUNDS)
    for name, seconds in times.items():
        found[name] |= {"seconds": spread(seconds), "ratio": ratio(seconds, times[choices.USUAL])}
    return {"ways": found, "refused": refused}


def _call(weight: GpuWeight, x: torch.Tensor, name: str) -> torch.Tensor:
    """Rounding of activations included, as all ways take them alike."""
    way = None if name == choices.USUAL else choices.Way(name, choices.parsed(name))
    return linear(x, [weight], narrow=True, ways=[way])[0]
