"""quantize: a model into fewer bits, calibrated, block by block, as a checkpoint that other engines read.

A method is a rounder (float weight -> QTensor) after any number of transforms (weights -> weights of the same function that round better).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from ..schemes import plan_text
from .kv_cache import cache_beside_search
from .method import Rounder, Transform, rounder, transform
from .run import Report, Wish, quantize

__all__ = ["Report", "Rounder", "Transform", "Wish", "cache_beside_search", "plan_text", "quantize", "rounder", "transform"]


class _Verb(ModuleType):
    """This package, which can also be called: octavo.quantize(module, scheme, ...) is quantize_module (modules.py). The folder of the subcommand and the
    function that the library offers have one name, and importing a package binds it over whatever its parent calls so."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from .modules import quantize_module

        return quantize_module(*arguments, **named)


sys.modules[__name__].__class__ = _Verb
