"""What a plug-in of `layers/` offers, and what quantizing hands to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

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

WHOLE = "weight"  # the name of the only matrix of a layer
Round = Callable[[np.ndarray, TensorSpec, Statistics | None], QTensor]


@dataclass(frozen=True)
class Wanted:
    """How one layer is to be quantized: its name in the module, its scheme, how its inputs come, and how weights are rounded.

    statistics   of the rows that meet each of its matrices, by the names of `Kind.met`, where the method asks for them and the data got there
    factors      float32 [k] by which inputs are multiplied before they become int8, and the columns of the weight divided
    ordered      whether the layer can take its inputs in another order
    """

    name: str
    scheme: Scheme
    inputs: Inputs
    round: Round
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    factors: np.ndarray | None = None
    ordered: bool = False

    def weight(self, values: torch.Tensor, matrix_name: str = WHOLE, inputs: Inputs | None = None, spec: TensorSpec | None = None) -> Weight:
        """A matrix [n, k] rounded and packed; `matrix_name`: among those of `Kind.met`."""
        statistics = self.statistics.get(matrix_name)
        matrix = np.ascontiguousarray(values.detach().float().cpu().numpy())
        if self.factors is None:
            tensor = self.round(matrix, spec or self.scheme.weight, statistics)
        else:
            tensor = self.round(matrix / self.factors, spec or self.scheme.weight, None if statistics is None else statistics.scaled(1 / self.factors))
            tensor = replace(tensor, factors=self.factors if tensor.factors is None else self.factors * tensor.factors)
        packed = layouts.pack(tensor)
        if packed.rotation:
            raise SchemeError("methods that rotate the inputs of a weight do not run in modules", where=self.name, remedy="another method, such as rtn or gptq")
        if packed.order is not None and not self.ordered:
            raise SchemeError("the method stores an order of inputs, which only linears take", where=self.name,
                              remedy="gptq's groups=static, which is the default, or a plan that keeps this layer")
        return Weight(packed, self.inputs if inputs is None else inputs)


@dataclass(frozen=True)
class Given:
    """What a call gives a layer: its input, what came after it, and which rows are no padding (bool [batch, length], where a mask came with the data)."""

    x: Any
    rest: tuple[Any, ...] = ()
    mask: torch.Tensor | None = None

    @property
    def real(self) -> Any:
        """x without padding: the rows [1, rows, k] of x [batch, length, k] that the mask keeps."""
        return self.x[self.mask.bool()].unsqueeze(0) if self.mask is not None and self.fits else self.x

    @property
    def fits(self) -> bool:
        """Whether the mask is of the rows of x."""
        x = self.x
        return self.mask is not None and isinstance(x, torch.Tensor) and x.dim() == 3 and x.shape[:2] == self.mask.shape and x.is_floating_point()


class Kind(Protocol):
    """`replaces` and `why_not` say which modules; `rows` gives the numbers that an input holds, for observers, as a matrix with the inputs as columns where
    the layer has such (None: its inputs are not observed); `build` makes the layer; `blank` makes it around weights that a file holds, `held` being the
    names of all its tensors there."""

    name: str

    def replaces(self, module: nn.Module) -> bool: ...

    def why_not(self, module: nn.Module, scheme: Scheme) -> str | None: ...

    def rows(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor | None: ...

    def met(self, module: nn.Module, given: Given) -> dict[str, torch.Tensor]:
        """The rows [rows, k] that each of its matrices meets when the module is `given` this; without those that meet none (tables)."""

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

