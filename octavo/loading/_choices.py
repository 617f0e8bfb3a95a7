"""Which plan, which cache format, which backend: what the caller did not say is decided here, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..checkpoints import Checkpoint
from ..checkpoints.octavo import OctavoCheckpoint
from ..errors import KernelError
from ..kernels.op import Backend, Problem
from ..policy import Dispatch
from ..registry import find
from ..schemes import Choice, Plan, TensorSpec, choose, parse_tensor

if TYPE_CHECKING:
    from ..machine import Machine

BACKENDS = "octavo.kernels"


def make_backend(name: str, threads: int | None, isa: str | None) -> Backend:
    """The backend of this name. Raises UnknownNameError with the known ones."""
    kind = find("backend", name, BACKENDS, "KERNELS")
    backend: Backend = kind(threads, isa) if name == "native" else kind()
    return backend


def choose_plan(quantization: str | None, checkpoint: Checkpoint, machine: Machine) -> Choice:
    """The plan for a name, or for none: what is stored unquantized stays as it is, anything else gets 16 bits."""
    if quantization is not None:
        return choose(quantization, machine)
    if isinstance(checkpoint, OctavoCheckpoint):
        return Choice(Plan.from_json(checkpoint.plan), "as the checkpoint was quantized")
    sizes: dict[tuple[str, TensorSpec], int] = {}
    for info in checkpoint.tensors.values():
        if len(info.shape) == 2 and info.spec is not None:
            sizes[info.stored, info.spec] = sizes.get((info.stored, info.spec), 0) + info.nbytes
    stored = max(sizes, key=lambda kind: sizes[kind], default=None)
    if stored is not None and stored[1] == TensorSpec("fp32"):
        return Choice(Plan.parse("W32A32C32"), "as stored (float32)")
    name = stored[0] if stored else "nothing"
    plain = stored is not None and not stored[1].quantized
    return Choice(Plan.parse("W16A16C16"), f"as stored ({name})" if plain else f"stored as {name} and no precision was named: 16 bits")


def choose_cache(kv_cache: str | None, plan: Plan, head_dims: list[int], dispatch: Dispatch) -> tuple[TensorSpec, str]:
    """(format of the key-value cache, a note where it is not the plan's). Raises KernelError when a format that was named cannot run."""
    spec = parse_tensor(kv_cache, "cache") if kv_cache is not None else plan.default.cache
    try:
        for width in sorted(set(head_dims)):
            dispatch.choose(Problem("attention", head_dim=width, cache=spec))
        return spec, ""
    except KernelError:
        if kv_cache is not None:
            raise
        return TensorSpec("bf16"), f"the key-value cache is bf16: no kernel here stores {spec.format}"
