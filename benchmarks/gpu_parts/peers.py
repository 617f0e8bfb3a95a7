"""One product of one shape: ours and every rival, for each number of rows, in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from octavo.kernels.triton.weights import GpuWeight, family_of, linear, prepare
from octavo.qtensor import quantize
from octavo.schemes import TensorSpec

from . import rivals
from .rivals import RIVALS, Given, Rival, Weight
from .shapes import PRECISIONS
from .timing import ROUNDS, Candidate, copies_for, in_turn, ratio, spread

OURS, WHOLE = "Octavo", "Octavo, rounding included"
JUDGED = 64         # rows of a result that are held against the reference
FEWER_ROUNDS = 7    # where no bar is set


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def specs(precision: str) -> tuple[TensorSpec, TensorSpec]:
    """(weight, activation)"""
    fields, more, activation, activation_more = PRECISIONS[precision]
    return TensorSpec(*fields, **more), TensorSpec(*activation, **activation_more)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """{"rows_found": one record for each number of rows, "refused": {rival: why}}"""
    torch.manual_seed(0)
    spec, activation = specs(case["precision"])
    q = quantize(torch.randn(case["n"], case["k"], device=device()) * 0.02, spec)
    weight = prepare(q, activation, device=device())
    inputs = [_given(weight, rows) for rows in case["rows"]]
    if case["warm"]:
        for given in inputs:
            _ours(weight, given)
            linear(given.x, [weight], narrow=True)
        return {"compiled": len(inputs)}
    values = (q.codes.view(torch.bfloat16) if not spec.quantized else q.dequantize().to(torch.bfloat16))
    forms, refused = _forms(case, Weight(q, values), weight)
    found = [_compared(case, given, values, forms, refused, case["rows"][at]) for at, given in enumerate(inputs)]
    return {"rows_found": found, "refused": refused}


def _given(weight: GpuWeight, rows: int) -> Given:
    x = torch.randn(rows, weight.k, device=weight.codes.device).to(torch.bfloat16)
    return Given(x, family_of(weight).inputs(x, weight) if weight.activation.quantized else None)


def _ours(weight: GpuWeight, given: Given) -> torch.Tensor:
    family = family_of(weight)
    read = given.rounded if given.rounded is not None else family.inputs(given.x, weight)
    found: torch.Tensor = family.multiply(read, weight, narrow=True)
    return found


def _forms(case: dict[str, Any], weight: Weight, ours: GpuWeight) -> tuple[dict[str, tuple[Rival | None, list[Any]]], dict[str, str]]:
    """Every candidate's form of the weight, in copies; why the others have none."""
    forms: dict[str, tuple[Rival | None, list[Any]]] = {OURS: (None, copies(ours, ours.nbytes))}
    refused: dict[str, str] = {}
    for rival in RIVALS:
        if case["precision"] not in rival.precisions or (rival.slow and case["tier"] > 1):
            continue
        if not rivals.installed(rival):
            refused[rival.name] = "not installed"
            continue
        try:
            made = rival.prepare(weight)
            forms[rival.name] = rival, copies(made, _nbytes(made) or ours.nbytes)
        except Exception as error:  # what a peer raises is its answer
            refused[rival.name] = _said(error)
    return forms, refused


def copies(made: Any, nbytes: int) -> list[Any]:
    return [made, *(copy.deepcopy(made) for _ in range(copies_for(nbytes) - 1))]


def _nbytes(made: Any) -> int:
    if isinstance(made, torch.Tensor):
        return made.nbytes
    if isinstance(made, torch.nn.Module):
        return sum(part.nbytes for part in (*made.parameters(), *made.buffers()))
    return sum(_nbytes(part) for part in made if isinstance(part, torch.Tensor)) if isinstance(made, tuple) else 0


def _compared(case: dict[str, Any], given: Given, values: torch.Tensor, forms: dict[str, tuple[Rival | None, list[Any]]], refused: dict[str, str],
              rows: int) -> dict[str, Any]:
    truth = _truth(given, values)
    calls: dict[str, list[Callable[[], Any]]] = {}
    errors: dict[str, float] = {}
    for name, (rival, made) in forms.items():
        mine: list[Callable[[], Any]] = [partial(_ours, one, given) if rival is None else partial(rival.multiply, one, given) for one in made]
        try:
            errors[name] = _error(mine[0](), truth)
            calls[name] = mine
        except Exception as error:  # what a peer raises is its answer
            if rival is None:
                raise
            refused[f"{name}, {rows} rows"] = _said(error)
    if given.rounded is not None:
        calls[WHOLE] = [partial(linear, given.x, [one], narrow=True) for one in forms[OURS][1]]
    candidates = {name: Candidate(mine) for name, mine in calls.items()}
    times = in_turn(candidates, 1 if case["tiny"] else ROUNDS if case["tier"] == 1 else FEWER_ROUNDS)
    known = {rival.name: rival for rival in RIVALS}
    peers = {name: {"seconds": spread(seconds), "ratio": ratio(times[WHOLE if known[name].rounds and WHOLE in times else OURS], seconds),
                    "error": errors[name], "alike": known[name].alike, "captured": candidates[name].captured}
             for name, seconds in times.items() if name not in (OURS, WHOLE)}
    ours = forms[OURS][1][0]
    n, k = values.shape
    found = {"rows": rows, "seconds": spread(times[OURS]), "error": errors[OURS], "captured": candidates[OURS].captured, "peers": peers,
             "bytes": ours.nbytes + rows * (k * (1 if given.rounded is not None else 2) + 2 * n), "operations": 2 * rows * n * k}
    return found | ({"with_rounding": spread(times[WHOLE])} if WHOLE in times else {})


def _truth(given: Given, values: torch.Tensor) -> torch.Tensor:
    """float32 [JUDGED, n]: the product of what the kernels read."""
    x = given.x[:JUDGED].float()
    if (rounded := given.rounded) is not None:
        codes = rounded.codes[:JUDGED]
        numbers = codes.float() if codes.dtype == torch.int8 else codes.view(torch.float8_e4m3fn).float()
        scales = rounded.scales[:, :JUDGED].t()
        x = numbers * (scales.repeat_interleave(rounded.group, dim=1)[:, : numbers.shape[1]] if rounded.group else scales)
    return x @ values.float().t()


def _error(y: torch.Tensor, truth: torch.Tensor) -> float:
    """Distance over length; NaN counts as far away."""
    found = float((y[:JUDGED].float() - truth).norm() / truth.norm())
    return found if found == found else 1e30


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
