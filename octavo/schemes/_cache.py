"""CacheSpec: the precision of the key-value cache where keys and values, or layers, differ; and the names that `--kv-cache` reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ._types import TensorSpec

Pair = tuple[TensorSpec, TensorSpec]


@dataclass(frozen=True)
class CacheSpec:
    """(keys, values) of every layer; one pair alone is that of all layers. `str` names it."""

    layers: tuple[Pair, ...]

    def of(self, layer: int) -> Pair:
        return self.layers[layer if len(self.layers) > 1 else 0]

    @property
    def format(self) -> str:
        """One word, for file names and reports: int8, int8-int4 (keys, then values), mixed."""
        formats = {(keys.format, values.format) for keys, values in self.layers}
        return "mixed" if len(formats) > 1 else "-".join(dict.fromkeys(next(iter(formats))))

    def __str__(self) -> str:
        counts = Counter(_name(pair) for pair in self.layers)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{name} in layers {','.join(str(i) for i, pair in enumerate(self.layers) if _name(pair) == name)}" for name in counts)


def _name(pair: Pair) -> str:
    from ._grammar import write_tensor

    keys, values = pair
    return f"C{write_tensor(keys, 'cache')}" if keys == values else f"K{write_tensor(keys, 'cache')}V{write_tensor(values, 'cache')}"


def cache_pairs(spec: TensorSpec | CacheSpec, layers: int) -> list[Pair]:
    """(keys, values) of each of `layers` layers."""
    return [spec.of(i) if isinstance(spec, CacheSpec) else (spec, spec) for i in range(layers)]


def cache_of(pairs: Sequence[Pair]) -> TensorSpec | CacheSpec:
    """The simplest spec that says the same: one for all where all are equal."""
    kinds = set(pairs)
    if len(kinds) > 1:
        return CacheSpec(tuple(pairs))
    keys, values = next(iter(kinds))
    return keys if keys == values else CacheSpec(((keys, values),))


def cache_name(spec: TensorSpec | CacheSpec) -> str:
    """All of it in the grammar: C16, C8ts, K8V4, `C8 in layers 0,2, C4 in layers 1`. Two caches that store other numbers have other names."""
    return str(spec) if isinstance(spec, CacheSpec) else _name((spec, spec))


def parse_cache(name: str) -> TensorSpec | CacheSpec:
    """`int8`, `8`, `C8`, `fp8`, `Cfp8ts`, `C4`, or keys and values apart: `K8V4`. Raises SchemeError."""
    from ._grammar import parse, parse_tensor

    stripped = name.strip()
    if stripped[:1].lower() in ("k", "v"):
        scheme = parse(stripped)
        return cache_of([(scheme.cache, scheme.cache_values)])
    return parse_tensor(name, "cache")
