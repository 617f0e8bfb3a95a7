"""Calibration of a torch module: data goes through it in float, and hooks on its layers count what they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..calibration.observers import Observer
from ..calibration.statistics import Statistics, combine, means, of_rows
from ..errors import UsageError
from ._find import Found
from ._inputs import is_static

ROWS_AT_ONCE = 4096


def observe(module: nn.Module, found: list[Found], data: Iterable[Any], observer: str, needs: str) -> tuple[dict[str, Observer], dict[str, Statistics]]:
    """Runs `data` through `module` and gives, by layer, the ranges of inputs (of those with static scales) and their statistics (where `needs` is
    "moments" or "gram"). An item is what the module takes: a tensor, a tuple of arguments, or a mapping of them. Raises UsageError for no data."""
    ranges = {f.name: Observer(observer) for f in found if is_static(f.scheme.activation) and f.kind.name != "embedding"}
    sums: dict[str, Statistics] = {}
    handles = [f.module.register_forward_pre_hook(_hook(f, ranges.get(f.name), sums, needs), with_kwargs=True) for f in found]
    batches = 0
    try:
        with torch.inference_mode():
            for item in data:
                _call(module, item)
                batches += 1
    finally:
        for handle in handles:
            handle.remove()
    if not batches:
        raise UsageError("the calibration data is empty", where="data", remedy="give an iterable of inputs that the module takes")
    return ranges, {name: means(total) for name, total in sums.items()}


def _call(module: nn.Module, item: Any) -> None:
    if isinstance(item, Mapping):
        module(**item)
    elif isinstance(item, (tuple, list)):
        module(*item)
    else:
        module(item)


def _hook(found: Found, seen: Observer | None, sums: dict[str, Statistics], needs: str) -> Any:
    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = arguments[0] if arguments else next(iter(named.values()))
        if seen is not None:
            rows = found.kind.rows(module, x, False)
            if rows is not None:
                seen.update(rows.detach().float().numpy())
        if needs != "nothing":
            rows = found.kind.rows(module, x, True)
            if rows is not None:
                whole = np.ascontiguousarray(rows.detach().float().numpy())
                for start in range(0, len(whole), ROWS_AT_ONCE):
                    part = of_rows(whole[start : start + ROWS_AT_ONCE], needs == "gram")
                    sums[found.name] = combine(sums.get(found.name), part)

    return hook
