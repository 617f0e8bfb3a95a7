"""The gated feed-forward layer (arXiv 2002.05202): down(act(gate(x)) * up(x))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..kernels.op import Value
from .linear import linear, linears
from .tensors import Tensors


@dataclass(frozen=True)
class GatedMLP:
    hidden: int
    inner: int
    act: Literal["silu", "gelu_tanh", "gelu"] = "silu"
    bias: bool = False

    def __call__(self, t: Tensors, x: Value, name: str, residual: Value | None = None) -> Value:
        gate, up = linears(t, x, {f"{name}.gate_proj": self.inner, f"{name}.up_proj": self.inner}, self.hidden, self.bias)
        inner = t.ops.gate(self.act, gate, up)
        return linear(t, inner, f"{name}.down_proj", self.hidden, self.inner, bias=self.bias, residual=residual)
