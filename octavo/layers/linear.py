"""Linear layers: y = x W^T + b. Several that read the same x are one call, so that x is quantized once."""

from __future__ import annotations

from collections.abc import Mapping

from ..kernels.op import Value
from .tensors import Tensors


def linears(t: Tensors, x: Value, widths: Mapping[str, int], k: int, bias: bool = False) -> tuple[Value, ...]:
    """One output [rows, widths[name]] for each layer `name`, from x [rows, k]."""
    weights = [t.weight(f"{name}.weight", n, k) for name, n in widths.items()]
    biases = [t.vector(f"{name}.bias", n) for name, n in widths.items()] if bias else None
    return t.ops.linear(x, weights, biases)


def linear(t: Tensors, x: Value, name: str, n: int, k: int, *, bias: bool = False, residual: Value | None = None) -> Value:
    """[rows, n] of the layer `name` from x [rows, k], plus `residual` where there is one."""
    biases = [t.vector(f"{name}.bias", n)] if bias else None
    return t.ops.linear(x, [t.weight(f"{name}.weight", n, k)], biases, residual)[0]
