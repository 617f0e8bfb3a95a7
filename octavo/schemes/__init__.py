"""How the numbers of a model are stored and computed: TensorSpec, Scheme, Plan, the grammar that names them, and the presets.

    name -> parse -> Scheme            W4g64A8C16: weights, activations, cache
    name -> Plan.parse -> Plan         a Scheme for every tensor, exceptions included
    "8bit" + Machine -> choose -> Choice(plan, reason)
"""

from __future__ import annotations

from ._choose import Choice, choose
from ._grammar import parse, parse_tensor
from ._names import NAMES, known_names
from ._plan import Plan
from ._types import Granularity, Scheme, TensorSpec

__all__ = ["NAMES", "Choice", "Granularity", "Plan", "Scheme", "TensorSpec", "choose", "known_names", "parse", "parse_tensor"]
