"""Calibration of a torch module: data goes through it in float, and hooks on its layers count what they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..calibration.observers import Observer
from ..calibration.statistics import Statistics, combine, means, of_rows
from ..errors import UsageError
from ._find import Found
from ._kind import Given

ROWS_AT_ONCE = 4096


def statistics(module: nn.Module, found: list[Found], data: Iterable[Any], needs: str) -> dict[str, dict[str, Statistics]]:
    """{layer: {matrix: of the rows that it meets while `data` runs through `module`}}; nothing of what the data does not reach. needs: "gram", or
    what comes without it.
    An item of `data` is what the module takes: a tensor, a tuple of arguments, or a mapping of them. Raises UsageError for no data."""
    sums: dict[str, dict[str, Statistics]] = {}

    def add(layer: Found, given: Given) -> None:
        for name, rows in layer.kind.met(layer.module, given).items():
            whole = np.ascontiguousarray(rows.detach().float().numpy())
            for start in range(0, len(whole), ROWS_AT_ONCE):
                mine = sums.setdefault(layer.name, {})
                mine[name] = combine(mine.get(name), of_rows(whole[start : start + ROWS_AT_ONCE], needs == "gram"))

    _run(module, found, data, add)
    return {layer: {name: means(total) for name, total in mine.items()} for layer, mine in sums.items()}


def ranges(module: nn.Module, found: list[Found], data: Iterable[Any], observer: str, factors: Mapping[str, np.ndarray]) -> dict[str, Observer]:
    """What the inputs of the layers with static scales are, multiplied by `factors` [k] where a layer has them."""
    seen = {f.name: Observer(observer) for f in found}

    def add(layer: Found, given: Given) -> None:
        rows = layer.kind.rows(layer.module, given.real)
        if rows is not None and len(rows):
            values = rows.detach().float().numpy()
            seen[layer.name].update(values * factors[layer.name] if layer.name in factors else values)

    _run(module, found, data, add)
    return seen


def mean_errors(module: nn.Module, found: list[Found], data: Iterable[Any], made: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """By how much the outputs of layers exceed, channel by channel in the mean, those of the layers `made` from them, both given what flows through the
    float module: rounding of weights and inputs, and clipping. Source: Nagel et al., arXiv:1906.04721, section 4.2 (empirical bias correction)."""
    sums: dict[str, tuple[torch.Tensor, int]] = {}

    def add(layer: Found, given: Given) -> None:
        x = given.real
        difference = (layer.module.forward(x) - made[layer.name](x)).double()
        channel = 1 if layer.kind.name == "convolution" and x.dim() == layer.module.weight.dim() else 0 if layer.kind.name == "convolution" else -1  # type: ignore[union-attr,operator]
        rows = difference.movedim(channel, -1).reshape(-1, difference.shape[channel])
        total, count = sums.get(layer.name, (0, 0))
        sums[layer.name] = (total + rows.sum(dim=0), count + len(rows))

    _run(module, found, data, add)
    return {name: (total / count).float() for name, (total, count) in sums.items() if count}


def _run(module: nn.Module, found: list[Found], data: Iterable[Any], add: Callable[[Found, Given], None]) -> None:
    """`data` through `module`; `add` sees what every layer of `found` is given."""
    def hook_of(layer: Found) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            x, *rest = (*arguments, *named.values())
            add(layer, Given(x, tuple(rest), mask))

        return hook

    mask: torch.Tensor | None = None

    handles = [f.module.register_forward_pre_hook(hook_of(f), with_kwargs=True) for f in found]
    batches = 0
    try:
        with torch.inference_mode():
            for item in data:
                mask = item.get("attention_mask") if isinstance(item, Mapping) else None
                _call(module, item)
                batches += 1
    finally:
        for handle in handles:
            handle.remove()
    if not batches:
        raise UsageError("the calibration data is empty", where="data", remedy="give an iterable of inputs that the module takes")


def _call(module: nn.Module, item: Any) -> None:
    if isinstance(item, Mapping):
        module(**item)
    elif isinstance(item, (tuple, list)):
        module(*item)
    else:
        module(item)

