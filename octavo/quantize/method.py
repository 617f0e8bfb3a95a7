"""Rounder and Transform: what a method is. Each is a file of `rounders/` or `transforms/` that ends with ROUNDER or TRANSFORM, a frozen dataclass whose
fields are its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ..calibration import Block, Group, Statistics
from ..calibration.blocks import Weights
from ..checkpoints import Checkpoint
from ..errors import UsageError
from ..models import Decoder
from ..qtensor import QTensor, rotate
from ..registry import find
from ..schemes import Scheme, TensorSpec

Needs = Literal["nothing", "squares", "gram"]


class Rounder(Protocol):
    """needs   what `round` must know of the inputs: nothing, the mean of each squared, or the gram (Statistics without moments), in which tokens count
    by the relative error of their outputs (Group.counts)"""

    @property
    def needs(self) -> Needs: ...

    def round(self, weight: np.ndarray, spec: TensorSpec, statistics: Statistics | None) -> QTensor:
        """`weight` float32 [n, k] in the precision `spec`. The same bits for any number of threads. Called from one thread at a time."""


@runtime_checkable
class GroupRounder(Rounder, Protocol):
    """A rounder that is quicker for all weights that read the same inputs at once."""

    def round_group(self, weights: Sequence[np.ndarray], specs: Sequence[TensorSpec], statistics: Statistics | None, threads: int) -> list[QTensor]:
        """As `round` of each; `threads` may be used, and change no bit."""


@runtime_checkable
class RemarkingRounder(Rounder, Protocol):
    """remarks   what it had to do otherwise than asked, a sentence each; whoever reads them clears the list"""

    remarks: list[str]


@runtime_checkable
class DraftingRounder(Rounder, Protocol):
    """A rounder that has a quicker one, whose errors are much like its own: for a search, which rounds every weight to every candidate."""

    def draft(self) -> Rounder: ...


@runtime_checkable
class BlockRounder(Protocol):
    """A rounder that decides about all weights of a layer together (learned rounding)."""

    def round_block(self, block: Block, specs: Mapping[str, TensorSpec]) -> dict[str, QTensor]:
        """The weights `specs` names, quantized. Transforms may have changed the block; afterwards the runner runs it with what is returned."""


@runtime_checkable
class WillingRounder(Rounder, Protocol):
    """A rounder that makes use of calibration text where something else asked for it. with_text: what it then needs."""

    @property
    def with_text(self) -> Needs: ...


def needs_of(method: Rounder | BlockRounder, text: bool = False) -> Needs:
    """What must be known of a group of inputs before its weights are rounded; `text`: calibration text is at hand in any case. Of a BlockRounder
    nothing, it looks for itself."""
    if isinstance(method, BlockRounder):
        return "nothing"
    return method.with_text if text and isinstance(method, WillingRounder) else method.needs


def round_group(method: Rounder, weights: Sequence[np.ndarray], specs: Sequence[TensorSpec], statistics: Statistics | None, threads: int) -> list[QTensor]:
    """Weights that read the same inputs, each in its spec, at once where the method can."""
    if isinstance(method, GroupRounder):
        return method.round_group(weights, specs, statistics, threads)
    return [method.round(weight, spec, statistics) for weight, spec in zip(weights, specs, strict=True)]


def round_rotated(method: Rounder, weights: Sequence[np.ndarray], specs: Sequence[TensorSpec], statistics: Statistics | None, threads: int,
                  block: int) -> list[QTensor]:
    """As `round_group`, of weights whose inputs will be rotated in blocks of `block` (0: not at all) when the model runs. `statistics` are those of the
    inputs as they are here. Raises UsageError where the method permutes the inputs."""
    if not block:
        return round_group(method, weights, specs, statistics, threads)
    turned = [np.ascontiguousarray(rotate(weight, block), np.float32) for weight in weights]
    tensors = round_group(method, turned, specs, None if statistics is None else statistics.rotated(block), threads)
    if any(tensor.order is not None for tensor in tensors):
        raise UsageError("permutes inputs that are to be rotated when the model runs", where="--set gptq.groups=dynamic",
                         remedy="leave it out, or the h of the precision")
    return [dataclasses.replace(tensor, rotation=block) for tensor in tensors]


class Transform(Protocol):
    def prepare(self, model: Decoder, weights: Weights) -> None:
        """Before the first layer: what concerns the whole model (rotations of the residual stream)."""

    def apply(self, block: Block, schemes: Mapping[str, Scheme], needs: Needs) -> None:
        """Before the layer is rounded: may run it to look at its inputs, and replaces arrays of `block.tensors` (never writes into them). `schemes` names
        the weights that will be rounded, and says to what, and what their inputs will be rounded to; `needs` is the rounder's: with "gram" it will make
        later inputs correct the errors of earlier ones."""


@runtime_checkable
class Correction(Transform, Protocol):
    """A transform that also acts when the weights of a group have been rounded."""

    def opened(self, checkpoint: Checkpoint) -> Checkpoint:
        """What is quantized in the place of `checkpoint`: the same model, with room for what the correction adds."""

    def correct(self, block: Block, group: Group, rounded: Mapping[str, np.ndarray], scales: Mapping[str, np.float32]) -> None:
        """`rounded`: the numbers that the group's weights have become, by name; `scales`: those of their static int8 inputs. Changes `group.biases` and
        `block.tensors`."""


@runtime_checkable
class Retargeting(Transform, Protocol):
    """A transform that gives the weights of a group other values to round to, once all that comes before the group is rounded."""

    def retarget(self, block: Block, group: Group, names: Collection[str]) -> None:
        """Replaces the values of those of `group.weights` that `names` holds, which will be rounded; the others are written as they are. See Group.missed."""


def rounder(name: str, options: Mapping[str, str] | None = None) -> Rounder:
    """The rounder of this name, with its options as text ({"damping": "0.02"}). Raises UnknownNameError, UsageError."""
    made: Rounder = _made("method", name, "octavo.quantize.rounders", "ROUNDER", options or {})
    return made


def transform(name: str, options: Mapping[str, str] | None = None) -> Transform:
    """The transform of this name; see `rounder`."""
    made: Transform = _made("transform", name, "octavo.quantize.transforms", "TRANSFORM", options or {})
    return made


def options_of(method: Any) -> dict[str, Any]:
    """The options of a method with their values, for the record."""
    return {"name": type(method).__name__.lower(), **{field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.init}}


def _made(kind: str, name: str, package: str, constant: str, options: Mapping[str, str]) -> Any:
    cls = find(kind, name.lower().replace("-", "_"), package, constant)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in fields:
            raise UsageError(f"{kind} {name} has no option {key!r}", where="--set", remedy=f"known: {', '.join(fields) or 'none'}")
        values[key] = _value(f"{name}.{key}", text, fields[key].default)
    return cls(**values)


def _value(name: str, text: str, default: Any) -> Any:
    """`text` as the type that the default has."""
    try:
        if isinstance(default, bool):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        raise UsageError(f"{text!r} is no {type(default).__name__}", where=f"--set {name}", remedy=f"the default is {default}") from None
