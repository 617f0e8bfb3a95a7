"""Which layers of a module become quantized ones, in which scheme, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..registry import discover
from ..schemes import Plan, Scheme, parse
from ._kind import Kind
from ._weight import Quantized

LEAST_TABLE_BITS = 8


@dataclass(frozen=True)
class Found:
    """A layer to be replaced."""

    name: str
    module: nn.Module
    kind: Kind
    scheme: Scheme


def kinds() -> dict[str, Kind]:
    return discover("octavo.modules.layers", "LAYER")


def find(module: nn.Module, plan: Plan) -> tuple[list[Found], dict[str, str]]:
    """(layers to replace in the order of `named_modules`, {name: why not} of those of a known kind that stay)."""
    found: list[Found] = []
    kept: dict[str, str] = {}
    for name, part, closed in _walk(module, ""):
        kind = next((k for k in kinds().values() if k.replaces(part)), None)
        if kind is None:
            continue
        scheme = plan.scheme_for(f"{name}.weight")
        if closed:
            kept[name] = "its owner reads the weight itself (nn.MultiheadAttention)"
            continue
        if scheme is None:
            kept[name] = "the plan keeps it"
            continue
        named = any(scheme is given for _, given in plan.overrides)
        if kind.name == "embedding" and not named and scheme.weight.quantized and scheme.weight.bits < LEAST_TABLE_BITS:
            scheme = replace(scheme, weight=parse("W8").weight)
        reason = kind.why_not(part, scheme)
        if reason is None:
            found.append(Found(name, part, kind, scheme))
        else:
            kept[name] = reason
    return found, kept


def _walk(module: nn.Module, name: str, closed: bool = False) -> Iterator[tuple[str, nn.Module, bool]]:
    """(name, module, whether its owner reads its weight directly), each module once by its first name."""
    seen: set[int] = set()

    def visit(part: nn.Module, name: str, closed: bool) -> Iterator[tuple[str, nn.Module, bool]]:
        if id(part) in seen or isinstance(part, Quantized):
            return
        seen.add(id(part))
        yield name, part, closed
        for child_name, child in part.named_children():
            yield from visit(child, f"{name}.{child_name}" if name else child_name, closed or isinstance(part, nn.MultiheadAttention))

    yield from visit(module, name, closed)


def put(root: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Sets the layer of this name, wherever the same module stands; the root, which is the layer itself where the name is empty."""
    if not name:
        return layer
    old: Any = root.get_submodule(name)
    for owner in list(root.modules()):
        for child_name, child in list(owner._modules.items()):  # named_children leaves out the second name of a shared layer
            if child is old:
                setattr(owner, child_name, layer)
    return root


def open_fast_paths(root: nn.Module) -> None:
    """Turns off the fused path of torch's own transformer layers, which reads the weights of linears that are no tensors any more."""
    for part in root.modules():
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0
        elif isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
