"""The key-value cache of the checkpoint that is written: its precision, and static scales of it, measured over the calibration text.

A scheme names them with `s`: Cfp8ts has one scale for the keys of a layer and one for its values, Cfp8s one for each head. Keys are measured as the cache
holds them, after norm and rotary embedding, in the model as it has been rounded so far. What lies beyond the range that the observer chose is clipped.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..calibration.rows import Node, RowsOps
from ..errors import SchemeError, UsageError
from ..schemes import CacheSpec, Plan, TensorSpec, cache_pairs, plan_text
from .inputs import check_observer, is_static, scale_from

FORMATS = ("int8", "fp8e4m3")
USUAL = "min-max"
PLACES = ("k", "v")  # of the model's names: "model.layers.0.self_attn.k"


def cache_of_plan(plan: Plan, layers: int, where: str) -> TensorSpec | CacheSpec | None:
    """What the cache of a model of so many layers is quantized to; None: it is not. Raises SchemeError for what no checkpoint can say."""
    cache = plan.cache(layers)
    halves = [half for pair in cache_pairs(cache, layers) for half in pair]
    if not any(half.quantized for half in halves):
        return None
    if any(is_static(half) for half in halves):
        good = all(is_static(half) and half.granularity in ("tensor", "token") and half.format in FORMATS and half.symmetric for half in halves)
        if not good:
            raise SchemeError("a static key-value cache has 8 bits in all layers, one scale a layer or a head, and no zero point", where=where,
                              remedy="write C8ts, Cfp8ts (a layer), Cfp8s (a head), or leave the s away: scales are then computed as the cache is filled")
    return cache


def is_measured(cache: TensorSpec | CacheSpec | None) -> bool:
    """Whether its scales come from calibration."""
    return cache is not None and is_static(cache_pairs(cache, 1)[0][0])


def cache_observer(name: str, cache: TensorSpec | CacheSpec) -> str:
    """The observer for a static cache; "" is the usual one, which clips nothing. Raises UnknownNameError, UsageError."""
    return check_observer(name, list(cache_pairs(cache, 1)[0])) if name else USUAL


def cache_beside_search(scheme: str) -> str:
    """Of a scheme that is named beside a search: what it says of the cache, to be parsed as a plan. Raises UsageError where it says anything else."""
    text = plan_text(scheme)
    plan = Plan.parse(text)
    if any(one is None or one.weight.quantized or one.activation.quantized for one in (plan.default, *(found for _, found in plan.overrides))):
        raise UsageError(f"the search decides what weights are rounded to, and {scheme} does so, too", where="--scheme",
                         remedy="beside --target-bits, --target-size and --max-kl name the cache alone (--scheme C8); --candidates says what weights may be")
    return text


def remarks(cache: TensorSpec | CacheSpec | None, to: str) -> list[str]:
    """A sentence where the checkpoint is written in vLLM's format with a cache that vLLM does not read."""
    if not isinstance(cache, TensorSpec) or not cache.dynamic or to.partition(":")[0].replace("_", "-") != "compressed-tensors":
        return []
    return ["vLLM does not load this checkpoint, since the scales of its key-value cache are computed as it is filled; it reads stored ones: Cfp8ts"]


class CacheScales:
    """Measures the keys and values of a layer whose attention is described while `watch` is given to Block.run."""

    def __init__(self, cache: TensorSpec | CacheSpec, layers: int, observer: str) -> None:
        self._pairs, self.observer = cache_pairs(cache, layers), cache_observer(observer, cache)
        self.found: dict[str, np.ndarray] = {}

    def watch(self, ops: RowsOps, k: Node, v: Node, layer: int, heads: int) -> None:
        """k, v [rows, heads * head_dim], as the cache will get them."""
        for place, spec, node in zip(PLACES, self._pairs[layer], (k, v), strict=True):
            seen = ops.observed(node, self.observer, heads if spec.granularity == "token" else 1)
            self.found[f"model.layers.{layer}.self_attn.{place}"] = np.array([scale_from(one, spec) for one in seen], np.float32)

    def taken(self) -> Mapping[str, np.ndarray]:
        """The scales that were found since the last call."""
        found, self.found = self.found, {}
        return found
