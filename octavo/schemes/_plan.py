"""Plan: a Scheme for every tensor of a model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import SchemeError, UsageError
from ._cache import CacheSpec, Pair, cache_of
from ._grammar import parse, parse_tensor
from ._names import normalize
from ._types import Scheme, TensorSpec, default_spec

# The table of words and the output layer: each row meets every token or becomes a logit, and 4 bits hurt there most.
OUTER_LAYERS = ("*lm_head*", "*embed_tokens*")
LEAST_OUTER_BITS = 8
MOST_SHOWN = 4  # overrides, in `short`
# FastDeploy's MixQuant: a type of most weights, and others for experts and cache.
MIX = (("dense_quant_type", None), ("moe_quant_type", ("*.experts.*",)), ("image_moe_quant_type", ("*.image_experts.*",)))
CACHE = "kv_cache_quant_type"
# Its types of caches. FastDeploy's have scales per head and channel from calibration; here they have one per token and head, computed as they are filled.
CACHES = {"int8": "C8", "int8_zp": "C8", "int4_zp": "C4", "float8_e4m3fn": "Cfp8", "block_wise_fp8": "Cfp8", "float8_e4m3fn_zp": "Cfp8"}
# Plans that have a name, and why they are as they are.
PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "mixquant": ({"dense_quant_type": "wint8", "moe_quant_type": "wint4"},
                 "FastDeploy's mix_quant as it takes wint4 for mixtures: INT8 weights, experts in INT4; another mix is a .json file with its keys")}


@dataclass(frozen=True)
class Plan:
    """A default Scheme and ordered overrides: the first pattern (glob on the tensor's name) that matches wins; None keeps the tensor."""

    default: Scheme
    overrides: tuple[tuple[str, Scheme | None], ...] = field(default=())

    @staticmethod
    def parse(name: str) -> Plan:
        """`NAME` or `NAME; PATTERN=NAME; PATTERN=keep ...`, the first match winning; NAME may be that of a plan (`mixquant`).

        The output layer and the embedding are never stored below 8 bits (INT8, one scale per row) unless a pattern says so.
        """
        first, *rest = (part.strip() for part in name.split(";"))
        known = PLANS.get(normalize(first))
        base = Plan(parse(first)) if known is None else _mixed(known[0])
        default = base.default
        chosen: list[tuple[str, Scheme | None]] = []
        for part in filter(None, rest):
            pattern, equals, value = part.partition("=")
            if not equals or not pattern.strip():
                raise SchemeError(f"cannot read the override {part!r}", where=f"precision {name!r}", remedy="write PATTERN=NAME or PATTERN=keep")
            chosen.append((pattern.strip(), None if value.strip().lower() == "keep" else parse(value.strip())))
        chosen += base.overrides
        if default.weight.bits < LEAST_OUTER_BITS:
            outer = Scheme(default_spec("int8", "weight"), default.activation, default.cache, default.values)
            chosen += [(pattern, outer) for pattern in OUTER_LAYERS]
        return Plan(default, tuple(chosen))

    def scheme_for(self, name: str) -> Scheme | None:
        """The Scheme of the tensor `name`, or None when it stays as it is. (Vectors, such as norms and biases, always stay.)"""
        for pattern, scheme in self.overrides:
            if fnmatchcase(name, pattern):
                return scheme
        return self.default

    def cache(self, layers: int) -> TensorSpec | CacheSpec:
        """The precision of the key-value cache: of layer i what the first pattern says that matches `model.layers.<i>.self_attn.kv_cache`."""
        pairs = []
        for layer in range(layers):
            scheme = self.scheme_for(f"model.layers.{layer}.self_attn.kv_cache") or self.default
            pairs.append((scheme.cache, scheme.cache_values))
        return cache_of(pairs or [(self.default.cache, self.default.cache_values)])

    def with_cache(self, cache: TensorSpec | CacheSpec) -> Plan:
        """The same weights and activations, with this key-value cache in all layers."""
        pairs: tuple[Pair, ...] = cache.layers if isinstance(cache, CacheSpec) else ((cache, cache),)
        (keys, values), _ = Counter(pairs).most_common(1)[0]

        def changed(scheme: Scheme | None, pair: Pair) -> Scheme | None:
            return None if scheme is None else replace(scheme, cache=pair[0], values=pair[1])

        others = [(f"model.layers.{layer}.self_attn.kv_cache", changed(self.default, pair)) for layer, pair in enumerate(pairs) if pair != (keys, values)]
        overrides = [(pattern, changed(scheme, (keys, values))) for pattern, scheme in self.overrides if not pattern.endswith("kv_cache")]
        return Plan(replace(self.default, cache=keys, values=values), (*others, *overrides))

    def __str__(self) -> str:
        return "; ".join([str(self.default), *(f"{pattern}={scheme or 'keep'}" for pattern, scheme in self.overrides)])

    @property
    def short(self) -> str:
        """As `str`, but overrides without number are counted: "W4g32zA16C16; 31 tensors W8g32A16C16". Not to be parsed."""
        if len(self.overrides) <= MOST_SHOWN:
            return str(self)
        counts = Counter(str(scheme or "kept as they are") for _, scheme in self.overrides)
        return "; ".join([str(self.default), *(f"{count} tensor{'s' if count > 1 else ''} {scheme}" for scheme, count in counts.most_common())])

    def to_json(self) -> dict[str, Any]:
        """{"default": name, "overrides": [[pattern, name or null], ...]}; names are canonical, so nothing is lost."""
        return {"default": str(self.default), "overrides": [[p, None if s is None else str(s)] for p, s in self.overrides]}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """The inverse of to_json; reads FastDeploy's MixQuant as well. Raises SchemeError for anything else."""
        try:
            if MIX[0][0] in data:
                return _mixed(data)
            overrides = tuple((str(p), None if s is None else parse(str(s))) for p, s in data.get("overrides", []))
            return Plan(parse(str(data["default"])), overrides)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SchemeError("this is no plan", where="plan", remedy='expected {"default": NAME, "overrides": [[PATTERN, NAME or null], ...]}') from None


def plan_text(name: str) -> str:
    """A name as it is; of a .json file, the plan that it holds (a search's, or FastDeploy's MixQuant). Raises UsageError, SchemeError."""
    if not name.endswith(".json"):
        return name
    try:
        return str(Plan.from_json(json.loads(Path(name).expanduser().read_text(encoding="utf-8"))))
    except SchemeError as error:
        raise SchemeError(error.what, where=name, remedy=error.remedy) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"cannot be read: {error}", where=name, remedy="name a plan in JSON, or a precision such as W4g64") from None


def _mixed(data: dict[str, Any]) -> Plan:
    kind = str(data.get(CACHE) or "")
    cache = parse_tensor(CACHES.get(kind.lower(), kind), "cache") if kind else None

    def scheme(name: object) -> Scheme:
        found = parse(str(name))
        return found if cache is None else replace(found, cache=cache)

    overrides = [(pattern, scheme(data[key])) for key, patterns in reversed(MIX) if patterns and data.get(key) for pattern in patterns]
    return Plan(scheme(data[MIX[0][0]]), (*overrides, *((pattern, None) for pattern in OUTER_LAYERS)))
