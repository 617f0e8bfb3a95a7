"""A case that says on what the others were measured."""

from __future__ import annotations

from typing import Any

from .machine import circumstances, has_native


def measure(case: dict[str, Any]) -> dict[str, Any]:
    return circumstances() | {"cpu_kernels": "here" if has_native() else "not built"}
