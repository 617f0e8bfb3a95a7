"""Caches: the key-value cache in the search. A candidate that names nothing but a C (C8, K8V4, C4) is one for the cache of a layer; it takes bytes for each
token of the context, and loses what `--kv-cache auto` measures (loading.CacheSearch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import UsageError
from ...loading import CacheSearch, LoadedModel
from ...schemes import CacheSpec, Scheme, TensorSpec, cache_name, cache_of, parse
from .program import Item

PLAIN = "C16"      # always among the candidates
CONTEXT = 4096     # tokens, where nothing else is said and the model takes so many
WORK = 8 * 16      # bit operations of a byte of the cache: it meets 16 bits
BF16 = TensorSpec("bf16")


@dataclass(frozen=True)
class Caches:
    """names     candidates, C16 first
    losses       nats per token, float64 [layers, names]: of each layer's cache alone
    sizes        bytes per token of context, int64 [layers, names]
    context      tokens whose cache counts as size
    together     one for all layers, for formats that can say no more
    """

    names: tuple[str, ...]
    losses: np.ndarray
    sizes: np.ndarray
    context: int
    together: bool = False

    def items(self) -> list[Item]:
        """For the program: one for each layer, or one for all."""
        sizes, losses = self.sizes.astype(np.int64) * self.context, np.maximum(self.losses, 0.0)
        if self.together:
            sizes, losses = sizes.sum(axis=0, keepdims=True), losses.sum(axis=0, keepdims=True)
        return [Item(f"cache {layer}", size, np.array([float(f"{one:.6g}") for one in loss]), size * WORK)
                for layer, (size, loss) in enumerate(zip(sizes, losses, strict=True))]

    def spec(self, choice: Sequence[int]) -> TensorSpec | CacheSpec:
        """The cache that the choices of `items` stand for."""
        schemes = [parse(self.names[i]) for i in (list(choice) * len(self.sizes) if self.together else choice)]
        return cache_of([(scheme.cache, scheme.cache_values) for scheme in schemes])

    def bytes_per_token(self, choice: Sequence[int]) -> int:
        """Of context, all layers."""
        return sum(int(item.bytes[i]) for item, i in zip(self.items(), choice, strict=True)) // self.context

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "losses": self.losses.tolist(), "sizes": self.sizes.tolist()}

    @staticmethod
    def of(found: dict[str, Any], context: int, together: bool) -> Caches:
        """The inverse of to_json, for a context."""
        return Caches(tuple(found["names"]), np.array(found["losses"]), np.array(found["sizes"]), context, together)


def split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(candidates for weights, candidates for caches: C16 first, or none). Raises UsageError for a name that is both."""
    weights, caches = [], []
    for name in names:
        scheme = parse(name)
        if name.strip()[:1].lower() in "ckv":
            caches.append(_name(scheme))
        elif not (scheme.cache.quantized or scheme.cache_values.quantized):
            weights.append(name)
        else:
            plain = replace(scheme, cache=BF16, values=None)
            raise UsageError(f"{name} says two things", where="--candidates",
                             remedy=f"name weights and cache each for itself: {str(plain).removesuffix('C16')},{_name(scheme)}")
    return weights, list(dict.fromkeys([PLAIN, *caches])) if caches else []


def _name(scheme: Scheme) -> str:
    """Its cache alone, as it is written: C8, K8V4."""
    return cache_name(cache_of([(scheme.cache, scheme.cache_values)]))


def measure_caches(original: LoadedModel, names: Sequence[str], context: int, together: bool) -> Caches:
    """What each layer's cache loses in each of the candidates. Raises UsageError for one that is not known, or that cannot run."""
    found = CacheSearch(original)
    known = [_name(parse(name)) for name in found.names]
    for name in names:
        if name not in known:
            raise UsageError(f"no cache of this model can be {name}", where="--candidates", remedy=f"known: {', '.join(known)}")
    places = [known.index(name) for name in names]
    return Caches(tuple(names), found.losses[:, places], found.sizes[:, places], context, together)
