"""What quantization_config states about one module, whatever tool wrote it. Every field comes from a stranger and may be of any type."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .patient import Patient


@dataclass(frozen=True)
class Stated:
    """bits, group (-1: whole rows; None: not said), sym, awq (packed along the output), v2 (GPTQ zero points stored as they are)."""

    bits: int | None = None
    group: int | None = None
    sym: bool | None = None
    awq: bool = False
    v2: bool = False


def stated(patient: Patient, module: str) -> Stated | None:
    """None where the config says nothing that is understood here about this module."""
    said = patient.quantization
    if patient.method == "compressed-tensors":
        weights = _group_of(said, module)
        if weights is None:
            return None
        return Stated(_whole(weights.get("num_bits")), _whole(weights.get("group_size")), _flag(weights.get("symmetric")))
    if patient.method not in ("gptq", "awq", "auto-round", "gptqmodel"):
        return None
    if any(_overrides(said, module)):
        return None
    packing = str(said.get("packing_format") or said.get("checkpoint_format") or said.get("backend") or "").lower()
    sym = _flag(said.get("sym")) if "sym" in said else (None if "zero_point" not in said else not said["zero_point"])
    awq = patient.method == "awq" or "awq" in packing or packing == "gemm"
    return Stated(_whole(said.get("bits")), _whole(said.get("group_size")), sym, awq, "v2" in packing)


def _group_of(said: Mapping[str, Any], module: str) -> dict[str, Any] | None:
    """The `weights` of the config group that targets the module: by its name, a pattern, or else the class Linear."""
    groups = [group for group in _values(said.get("config_groups")) if isinstance(group, dict) and isinstance(group.get("weights"), dict)]
    for by_class in (False, True):
        for group in groups:
            targets = [t for t in group.get("targets") or [] if isinstance(t, str)]
            if any(_targets(t, module, by_class) for t in targets):
                return group["weights"]
    return None


def _targets(target: str, module: str, by_class: bool) -> bool:
    if by_class:
        return target == "Linear"
    if not target.startswith("re:"):
        return target == module
    try:
        return len(target) < 200 and re.match(target[3:], module) is not None
    except re.error:
        return False


def _overrides(said: Mapping[str, Any], module: str) -> Iterator[bool]:
    """Whether the config says something else about this module (gptqmodel's `dynamic`, AutoRound's `extra_config`)."""
    for key in ("dynamic", "extra_config"):
        for pattern in said.get(key) or () if isinstance(said.get(key), dict) else ():
            plain = str(pattern).removeprefix("-:").removeprefix("+:").removeprefix("re:")
            try:
                yield plain in module or (len(plain) < 200 and re.search(plain, module) is not None)
            except re.error:
                yield True


def _values(held: Any) -> list[Any]:
    return list(held.values()) if isinstance(held, dict) else []


def _whole(value: Any) -> int | None:
    return value if type(value) is int and -1 <= value < 1 << 30 else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None
