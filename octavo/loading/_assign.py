"""What becomes of each tensor: which tensor of the checkpoint it is, in which precision it is kept, and which kernel runs it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np

from .. import layouts
from ..checkpoints import Checkpoint, TensorInfo
from ..errors import CheckpointError, KernelError
from ..kernels.op import Problem
from ..layers import Wanted
from ..models import Decoder
from ..policy import Dispatch
from ..qtensor import rotation_of
from ..schemes import Plan, TensorSpec, write_tensor
from ._report import Runs

BF16 = TensorSpec("bf16")
INT8_TOKEN = TensorSpec("int8", "token", dynamic=True)
SHOWN = 3  # names in an error


@dataclass(frozen=True)
class Job:
    """One weight. `asked` is what the plan says; `kept` is how it lies in memory: the same, or bf16 where no kernel reads `asked`, and then the
    numbers are those of `asked`, rounded to bf16. `input_scale`: of a static `activation`, else 0; `size`: bytes in memory where they are not in panels;
    `rotation`: block of the rotation of the inputs, 0 for none."""

    name: str
    stored: str              # the tensor's name in the checkpoint
    shape: tuple[int, int]
    asked: TensorSpec
    kept: TensorSpec
    activation: TensorSpec
    kernel: str
    input_scale: float = 0.0
    size: int = 0
    rotation: int = 0

    @cached_property
    def nbytes(self) -> int:
        """Bytes in memory once it is packed."""
        if self.size:
            return self.size
        if layouts.why_not(self.kept) is None:
            return layouts.describe(self.kept, *self.shape).nbytes
        return 4 * math.prod(self.shape)


def find(checkpoint: Checkpoint, model: Decoder, wanted: Mapping[str, Wanted]) -> dict[str, str]:
    """Name here -> name in the checkpoint, for every tensor wanted.

    Raises CheckpointError, naming file, tensor, what was expected and what was found, for tensors that are missing, of another shape, or
    there but without a use (which would mean that the model computes something else).
    """
    held = {model.canonical(name): name for name in checkpoint.tensors}
    missing = [name for name in wanted if name not in held]
    if missing:
        shape = list(wanted[missing[0]].shape)
        raise CheckpointError(f"tensor {missing[0]!r} {shape} is missing{_more(missing)}", where=str(checkpoint.path),
                              remedy="the checkpoint is incomplete, or not of the model that its config describes")
    for name, want in wanted.items():
        info = checkpoint.tensors[held[name]]
        if tuple(info.shape) != want.shape:
            raise CheckpointError(f"tensor {info.name!r} has shape {list(info.shape)}, expected {list(want.shape)}", where=str(info.file),
                                  remedy="weights and config are not of the same model")
        if info.spec is None:
            raise CheckpointError(f"tensor {info.name!r} is stored as {info.stored}, which is no number of a weight", where=str(info.file))
    extra = [name for name in held if name not in wanted and not any(fnmatchcase(name, pattern) for pattern in model.ignored)]
    if extra:
        info = checkpoint.tensors[held[extra[0]]]
        raise CheckpointError(f"tensor {info.name!r} {list(info.shape)} has no use in a model of type {model.config.get('model_type')!r}{_more(extra)}",
                              where=str(info.file), remedy="the config does not describe these weights (a missing bias or norm field?)")
    return {name: held[name] for name in wanted}


def assign(found: Mapping[str, str], wanted: Mapping[str, Wanted], tensors: Mapping[str, TensorInfo], plan: Plan,
           dispatch: Dispatch, scales: Mapping[str, np.ndarray]) -> tuple[list[Job], list[str]]:
    """A job for each weight, and a sentence for each thing that does not run as the plan says. `scales`: stored ones of static inputs, by the tensor's name
    in the checkpoint."""
    jobs: list[Job] = []
    changed: dict[str, list[str]] = {}
    for want in wanted.values():
        if not want.uses:
            continue
        info = tensors[found[want.name]]
        job, note = _job(want, info, plan, dispatch, scales.get(info.name))
        jobs.append(job)
        if note:
            changed.setdefault(note, []).append(want.name)
    return jobs, [f"{note} ({names[0]}{_more(names)})" for note, names in changed.items()]


def _job(want: Wanted, info: TensorInfo, plan: Plan, dispatch: Dispatch, stored: np.ndarray | None) -> tuple[Job, str]:
    scheme = plan.scheme_for(want.name)
    asked, activation = (scheme.weight, scheme.activation) if scheme else (_as_stored(info), BF16)
    rows, columns = want.shape

    def problems(kept: TensorSpec, activation: TensorSpec) -> list[Problem]:
        return [Problem(use, rows, columns, weight=kept, activation=activation) for use in sorted(want.uses)]

    scale = float(stored.reshape(-1)[0]) if stored is not None and stored.size == 1 else 0.0
    first: KernelError | None = None
    for kept, act, note in ways(asked, activation, known=0 < scale < math.inf):
        try:
            kernels = [dispatch.choose(problem) for problem in problems(kept, act)]
        except KernelError as error:
            first = first or error
            continue
        turned = rotation_of(columns) if act.rotated and kept.quantized else 0
        return Job(want.name, info.name, (rows, columns), asked, kept, act, kernels[0], scale if act.quantized and not act.dynamic else 0.0,
                   rotation=turned if turned > 1 else 0), note
    assert first is not None
    raise first


def what_runs(jobs: Sequence[Job]) -> list[Runs]:
    """The jobs by class, the largest first."""
    classes: dict[tuple[str, str, str, str], list[Job]] = {}
    for job in jobs:
        key = (write_tensor(job.asked, "weight"), write_tensor(job.kept, "weight"), write_tensor(job.activation, "activation"), job.kernel)
        classes.setdefault(key, []).append(job)
    found = [Runs(*key, len(same), sum(job.nbytes for job in same)) for key, same in classes.items()]
    return sorted(found, key=lambda one: -one.bytes)


def ways(asked: TensorSpec, activation: TensorSpec, *, known: bool = False) -> list[tuple[TensorSpec, TensorSpec, str]]:
    """(weight as kept in memory, activation, what is not as asked), best first: as asked; int8 activations with scales computed as they come;
    activations in 16 bits; the weight's numbers in bf16. `known`: the scale of static activations is."""
    static = activation.quantized and not activation.dynamic
    options = [] if static and not known else [(asked, activation, "")]
    if activation.quantized:
        if activation.format == "int8" and activation.symmetric and (static or activation.granularity == "tensor"):
            how = "static scales" if static else "one scale for all rows"
            options.append((asked, INT8_TOKEN, f"int8 activations with {how} run with scales computed per token"))
        options.append((asked, BF16, f"activations stay in 16 bits: no kernel here multiplies {_brief(asked)} by {_brief(activation)}"))
    if asked.quantized:
        if not static:
            options.append((BF16, activation, f"{asked.format} is emulated: its numbers lie in memory as bf16, no kernel here reads them"))
        if activation.quantized:
            options.append((BF16, BF16, f"{asked.format} x {activation.format} is emulated: the weight's numbers lie in memory as bf16, "
                                        "activations stay in 16 bits"))
    elif asked != BF16:
        options.append((BF16, activation, f"{asked.format} weights are rounded to bf16: no kernel here reads them"))
    return options


def _brief(spec: TensorSpec) -> str:
    """The format, with what keeps kernels from it."""
    size = f" in groups of {spec.size}" if spec.granularity == "group" and spec.size % 32 else ""
    zeros = " with zero points" if not spec.symmetric else ""
    return spec.format + size + zeros


def _as_stored(info: TensorInfo) -> TensorSpec:
    return info.spec if info.spec is not None and not info.spec.quantized else BF16


def _more(names: list[str]) -> str:
    if len(names) == 1:
        return ""
    rest = len(names) - SHOWN
    return f", as {'is' if len(names) == 2 else 'are'} {', '.join(map(repr, names[1:SHOWN]))}" + (f" and {rest} more" if rest > 0 else "")
