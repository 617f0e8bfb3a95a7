"""A directory of plug-ins is the registry: each file not starting with `_` ends with one constant of a fixed name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from .errors import UnknownNameError


@cache
def discover(package: str, constant: str) -> dict[str, Any]:
    """Map file name -> the object it ends with, for every module of `package` that holds `constant`.

    Modules are imported on first use of the directory, so they must be cheap to import.
    """
    root = importlib.import_module(package)
    found: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(root.__path__), key=lambda m: m.name):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        if hasattr(module, constant):
            found[info.name] = getattr(module, constant)
    return found


def find(kind: str, name: str, package: str, constant: str) -> Any:
    """What the file `name` of the directory ends with; imports that file alone. An UnknownNameError lists the known names."""
    root = importlib.import_module(package)
    if name.startswith("_") or name not in {info.name for info in pkgutil.iter_modules(root.__path__)}:
        return lookup(kind, name, discover(package, constant))
    module = importlib.import_module(f"{package}.{name}")
    return getattr(module, constant) if hasattr(module, constant) else lookup(kind, name, discover(package, constant))


def lookup(kind: str, name: str, known: dict[str, Any]) -> Any:
    """`known[name]`, or an UnknownNameError that lists the known names."""
    try:
        return known[name]
    except KeyError:
        raise UnknownNameError(kind, name, list(known)) from None
