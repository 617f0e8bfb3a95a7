"""How the numbers of a model are stored and computed: TensorSpec, Scheme, Plan, the grammar that names them, and the presets.

    name -> parse -> Scheme            W4g64A8C16: weights, activations, cache
    name -> Plan.parse -> Plan         a Scheme for every tensor, exceptions included
    "8bit" + Machine -> choose -> Choice(plan, reason)
"""

from __future__ import annotations

from ._cache import CacheSpec, cache_name, cache_of, cache_pairs, parse_cache
from ._choose import Choice, choose, meaning_of_presets
from ._describe import describe
from ._grammar import parse, parse_tensor, write_tensor
from ._names import NAMES, PRESETS, known_names, normalize
from ._plan import Plan, plan_text
from ._types import Granularity, Scheme, TensorSpec

__all__ = ["NAMES", "PRESETS", "CacheSpec", "Choice", "Granularity", "Plan", "Scheme", "TensorSpec", "cache_name", "cache_of", "cache_pairs", "choose",
           "describe", "known_names", "meaning_of_presets", "normalize", "parse", "parse_cache", "parse_tensor", "plan_text", "write_tensor"]
