"""linear: nn.Linear, and transformers' Conv1D (a linear whose weight lies the other way round).

What it is: y = x W^T + b on panels of codes, with float, dynamic int8 or fixed int8 inputs.
When to choose it: always; linears are where the weights and the time are.
Limits: parametrized or tied weights are taken as they are now; gradients do not flow.
Source: csrc/immediate.h.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ...schemes import Scheme
from .._kind import WHOLE, Given, Wanted, vector, why_not_weight
from .._weight import Quantized, Weight, immediate, rows_of


class QuantizedLinear(Quantized):
    """y [..., n] from x [..., k]."""

    kind = "linear"

    def __init__(self, weight: Weight, bias: torch.Tensor | None, scheme: str) -> None:
        super().__init__()
        self.weight, self.scheme = weight, scheme
        self.bias = vector(bias)
        self.in_features, self.out_features = weight.meta.k, weight.meta.n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        how = weight.inputs
        folds = how.fixed > 0 and weight.factors is not None and weight.order is None  # a fixed scale takes the factors in
        if not folds and (weight.order is not None or weight.factors is not None):
            x = weight.arranged(x.reshape(-1, weight.meta.k)).reshape(x.shape)
        rows = rows_of(x, weight.meta.k)
        out = np.empty((len(rows), weight.meta.n), np.float32)
        immediate().linear(weight.native, rows, self.derived("bias", self.bias, weight), out, how.group, how.fixed, how.zero_point, how.threshold,
                           weight.factors.numpy() if folds and weight.factors is not None else None)
        y = torch.from_numpy(out).reshape(*x.shape[:-1], weight.meta.n)
        return y if x.dtype == torch.float32 else y.to(x.dtype)

    def extra_repr(self) -> str:
        return self.scheme


def _transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def linear_values(module: nn.Module) -> torch.Tensor:
    """The weight [n, k], whichever way it lies."""
    values: torch.Tensor = module.weight  # type: ignore[assignment]
    return values.T if _transposed(module) else values


class LinearKind:
    name = "linear"

    def replaces(self, module: nn.Module) -> bool:
        return type(module) is nn.Linear or _transposed(module)

    def why_not(self, module: nn.Module, scheme: Scheme) -> str | None:
        return why_not_weight(scheme.weight)

    def rows(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
        return x.reshape(-1, x.shape[-1])

    def met(self, module: nn.Module, given: Given) -> dict[str, torch.Tensor]:
        x = given.real
        return {WHOLE: x.reshape(-1, x.shape[-1])}

    def build(self, module: nn.Module, wanted: Wanted) -> Quantized:
        values = linear_values(module)
        weight = wanted.weight(values)
        bias: torch.Tensor | None = module.bias  # type: ignore[assignment]
        return QuantizedLinear(weight, bias, str(wanted.scheme))

    def blank(self, module: nn.Module, scheme: Scheme, weights: dict[str, Weight], held: frozenset[str]) -> Quantized:
        weight = weights["weight"]
        bias = torch.zeros(weight.meta.n) if "bias" in held else None  # a correction may have given one to a layer without
        return QuantizedLinear(weight, bias, str(scheme))


LAYER = LinearKind()
