"""What a plug-in of `layers/` offers, and what quantizing hands to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from .. import layouts
from ..calibration.statistics import Statistics
from ..errors import SchemeError
from ..qtensor import QTensor
from ..schemes import Scheme, TensorSpec
from ._inputs import Inputs
from ._weight import Quantized, Weight

Round = Callable[[np.ndarray, TensorSpec, Statistics | None], QTensor]


@dataclass(frozen=True)
class Wanted:
    """How one layer is to be quantized: its name in the module, its scheme, how its inputs come, and how weights are rounded.

    statistics   of the rows that meet its weight, where the method asks for them
    factors      float32 [k] by which inputs are multiplied before they become int8, and the columns of the weight divided
    """

    name: str
    scheme: Scheme
    inputs: Inputs
    round: Round
    statistics: Statistics | None = None
    factors: np.ndarray | None = None

    def weight(self, values: torch.Tensor, inputs: Inputs | None = None, statistics: Statistics | None = None, spec: TensorSpec | None = None) -> Weight:
        """A matrix [n, k] rounded and packed."""
        matrix = np.ascontiguousarray(values.detach().float().cpu().numpy())
        if self.factors is None:
            tensor = self.round(matrix, spec or self.scheme.weight, statistics)
        else:
            tensor = self.round(matrix / self.factors, spec or self.scheme.weight, None if statistics is None else statistics.scaled(1 / self.factors))
            tensor = replace(tensor, factors=self.factors if tensor.factors is None else self.factors * tensor.factors)
        packed = layouts.pack(tensor)
        if packed.rotation:
            raise SchemeError("methods that rotate the inputs of a weight do not run in modules", where=self.name, remedy="another method, such as rtn or gptq")
        return Weight(packed, self.inputs if inputs is None else inputs)


class Kind(Protocol):
    """`replaces` and `why_not` say which modules; `rows` gives the matrix [rows, k] that an input becomes, for observers and statistics (None: its inputs
    are not observed); `build` makes the layer; `blank` makes it around weights that a file holds, `held` being the names of all its tensors there."""

    name: str

    def replaces(self, module: nn.Module) -> bool: ...

    def why_not(self, module: nn.Module, scheme: Scheme) -> str | None: ...

    def rows(self, module: nn.Module, x: torch.Tensor, patches: bool) -> torch.Tensor | None: ...

    def build(self, module: nn.Module, wanted: Wanted) -> Quantized: ...

    def blank(self, module: nn.Module, scheme: Scheme, weights: dict[str, Weight], held: frozenset[str]) -> Quantized: ...


def why_not_weight(spec: TensorSpec) -> str | None:
    """None when panels hold such a weight, else the reason."""
    if not spec.quantized:
        return f"{spec.format} weights stay as they are"
    return layouts.why_not(spec)


def refuse(reason: str | None, where: str) -> None:
    """Raises SchemeError when there is a reason."""
    if reason is not None:
        raise SchemeError(reason, where=where)


def vector(values: torch.Tensor | None) -> nn.Parameter | None:
    """A bias as a parameter of its own, without gradient."""
    return None if values is None else nn.Parameter(values.detach().clone(), requires_grad=False)

