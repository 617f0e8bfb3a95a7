"""Attention with grouped keys and values (arXiv 2305.13245) and rotary positions (arXiv 2104.09864)."""

from __future__ import annotations

from dataclasses import dataclass

from ..kernels.op import Value
from .linear import linear, linears
from .norm import RMSNorm
from .rope import Rope
from .tensors import Tensors


@dataclass(frozen=True)
class Attention:
    """rope       None: no positions at all (arXiv 2305.19466)
    head_norm  queries and keys are normed head by head before rotation (arXiv 2302.05442)
    window     a token sees itself and window-1 before it; 0: all before it
    softcap    scores become softcap * tanh(score / softcap); 0: as they are
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    head_norm: RMSNorm | None = None
    bias: bool = False
    out_bias: bool = False
    window: int = 0
    softcap: float = 0.0

    def __call__(self, t: Tensors, x: Value, name: str, layer: int, residual: Value | None = None) -> Value:
        q_width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        widths = {f"{name}.q_proj": q_width, f"{name}.k_proj": kv_width, f"{name}.v_proj": kv_width}
        q, k, v = linears(t, x, widths, self.hidden, self.bias)
        if self.head_norm is not None:
            q = self.head_norm(t, q, f"{name}.q_norm", self.head_dim, groups=self.heads)
            k = self.head_norm(t, k, f"{name}.k_norm", self.head_dim, groups=self.kv_heads)
        if self.rope is not None:
            q, k = self.rope(t, q, self.heads), self.rope(t, k, self.kv_heads)
        y = t.ops.attention(q, k, v, layer, heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, scale=self.scale,
                            window=self.window, softcap=self.softcap)
        return linear(t, y, f"{name}.o_proj", self.hidden, q_width, bias=self.out_bias, residual=residual)
