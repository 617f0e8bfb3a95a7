"""Octavo: neural networks in fewer bits, served with evidence.

    octavo.quantize(module, scheme, data=None, method="rtn")   any torch module in fewer bits (octavo.modules)
    octavo.save_module(module, path), octavo.load_module(path, module)

All of them need the extra `octavo[torch]` and are imported when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .modules import load as load_module
    from .modules import save as save_module
    from .quantize.modules import quantize_module as quantize

__all__ = ["__version__", "load_module", "quantize", "save_module"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "quantize":
        return import_module(".quantize", __name__)  # the verb's package, which can be called
    if name in ("load_module", "save_module"):
        return getattr(import_module(".modules", __name__), name.removesuffix("_module"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
