"""TorchOps: the op contract in torch float32, for whole sequences, so that gradients flow to the weights. Imports torch when it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import KernelError, UsageError

Tensor = Any


def import_torch() -> Any:
    """torch. Raises UsageError where it is not installed."""
    try:
        import torch
    except ImportError:
        raise UsageError("this method computes gradients, for which it needs torch", where="--method", remedy="pip install 'octavo[torch]'") from None
    return torch


@dataclass
class TorchMatrix:
    """A weight [n, k] that the ops take."""

    values: Tensor

    @property
    def n(self) -> int:
        return int(self.values.shape[0])

    @property
    def k(self) -> int:
        return int(self.values.shape[1])

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes)


class TorchOps:
    """Implements op.Ops for rows of whole sequences of `length` tokens, one after another, each from position 0."""

    name = "torch"

    def __init__(self, length: int) -> None:
        self.torch, self.length = import_torch(), length
        self._hidden: dict[int, Tensor] = {}

    def supports(self, problem: object) -> str | None:
        return None

    def prepare(self, tensor: object, activation: object, input_scale: float = 0.0) -> Any:
        raise KernelError("gradients need weights as arrays", where="torch")

    def constant(self, array: Any) -> Tensor:
        return self.torch.from_numpy(np.array(array, np.float32))

    def embed(self, weight: Any, factor: float = 1.0) -> Tensor:
        raise KernelError("layers start from vectors", where="torch")

    def linear(self, x: Tensor, weights: Sequence[TorchMatrix], biases: Sequence[Tensor | None] | None = None,
               residual: Tensor | None = None) -> tuple[Tensor, ...]:
        given = [None] * len(weights) if biases is None else list(biases)
        outs = [self.torch.nn.functional.linear(x, weight.values, bias) for weight, bias in zip(weights, given, strict=True)]
        if residual is not None:
            outs[0] = outs[0] + residual
        return tuple(outs)

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float, offset: float = 0.0, groups: int = 1) -> Tensor:
        parts = x.reshape(len(x), groups, -1)
        return (parts * self.torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps) * (gain + offset)).reshape(x.shape)

    def rope(self, x: Tensor, table: Tensor, heads: int, head_dim: int, rotary: int) -> Tensor:
        half = rotary // 2
        cos, sin = table[: self.length, None, :half], table[: self.length, None, half:rotary]
        y = x.reshape(-1, self.length, heads, head_dim)
        first, second, rest = y[..., :half], y[..., half:rotary], y[..., rotary:]
        return self.torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).reshape(x.shape)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, layer: int, *, heads: int, kv_heads: int, head_dim: int, scale: float, window: int = 0,
                  softcap: float = 0.0) -> Tensor:
        torch, window = self.torch, window if window < self.length else 0

        def split(x: Tensor, count: int) -> Tensor:
            return x.reshape(-1, self.length, count, head_dim).transpose(1, 2)

        share = heads // kv_heads
        queries, keys, values = split(q, heads), split(k, kv_heads), split(v, kv_heads)
        if share > 1:
            keys, values = keys.repeat_interleave(share, 1), values.repeat_interleave(share, 1)
        if window or softcap:
            scores = queries @ keys.transpose(-1, -2) * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            y = torch.softmax(scores.masked_fill(self._mask(window), -torch.inf), -1) @ values
        else:
            y = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale)
        return y.transpose(1, 2).reshape(len(q), heads * head_dim)

    def _mask(self, window: int) -> Tensor:
        if window not in self._hidden:
            at = self.torch.arange(self.length)
            behind = at[:, None] - at[None, :]
            self._hidden[window] = (behind < 0) | (behind >= window) if window else behind < 0
        return self._hidden[window]

    def gate(self, kind: Literal["silu", "gelu_tanh", "gelu"], gate: Tensor, up: Tensor) -> Tensor:
        functional = self.torch.nn.functional
        if kind == "silu":
            return functional.silu(gate) * up
        return functional.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none") * up

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        return cap * self.torch.tanh(x / cap)

    def select(self, x: Tensor) -> Tensor:
        return x


class TorchTensors:
    """layers.Tensors over torch: `weights` are what gradients are wanted of, everything else comes from `arrays` (float32, by name)."""

    def __init__(self, ops: TorchOps, weights: dict[str, Tensor], arrays: dict[str, np.ndarray]) -> None:
        self.ops, self._weights = ops, weights
        self._others = {name: ops.constant(array) for name, array in arrays.items() if name not in weights}
        self._tables: dict[str, Tensor] = {}

    def with_weights(self, weights: dict[str, Tensor]) -> TorchTensors:
        """The same with other weights."""
        other = TorchTensors(self.ops, weights, {})
        other._others, other._tables = self._others, self._tables
        return other

    def weight(self, name: str, n: int, k: int, use: str = "linear") -> TorchMatrix:
        return TorchMatrix(self._weights[name] if name in self._weights else self._others[name])

    def vector(self, name: str, n: int) -> Tensor:
        return self._others[name]

    def table(self, table: Any) -> Tensor:
        if table.name not in self._tables:
            self._tables[table.name] = self.ops.constant(table.make())
        return self._tables[table.name]
