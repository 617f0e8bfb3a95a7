"""A measured policy and a loaded model: what the policy depends on, and putting it to use."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from .. import __version__, _native, layouts
from ..errors import UsageError
from ..kernels.native import NativeOps, NativeProgram
from ..machine import detect
from ..policy import KernelChoice, Policy
from ..schemes import parse_cache
from ._model import LoadedModel

if TYPE_CHECKING:
    from ..kernels.op import DeviceBackend

STORES = {number: name for name, number in layouts.STORES.items()}
SCALE_TYPES = {number: name for name, number in layouts.SCALE_TYPES.items()}


class Choosable(Protocol):
    """A program whose linears can be run by several kernels. buckets: most rows of each choice; facts of linears: see `linear_facts`."""

    @property
    def buckets(self) -> Sequence[int]: ...

    def linears(self) -> list[dict[str, Any]]: ...

    def choose(self, linear: int, bucket: int, kernel: str) -> None: ...

    def chosen(self, linear: int, bucket: int) -> str: ...


def fingerprint(loaded: LoadedModel) -> dict[str, Any]:
    """What measurements of this model depend on, as JSON. Raises UsageError for a backend that has no choices."""
    program = choosable(loaded)
    kinds = Counter(_shown(linear_facts(linear)) for linear in program.linears())
    return {
        "octavo": __version__, **_here(loaded), "model": str(loaded.report.model_type), "scheme": str(loaded.plan), "cache": loaded.cache_spec.format,
        "vocabulary": loaded.vocab_size, "attention": f"{len(loaded.kv_heads)} layers, key heads {_set(loaded.kv_heads)} of {_set(loaded.head_dims)}",
        "linears": [f"{count} x {kind}" for kind, count in kinds.items()],
    }


def _here(loaded: LoadedModel) -> dict[str, Any]:
    """The device, and the build of its kernels."""
    if not loaded.backend.panels:
        return dict(cast("DeviceBackend", loaded.backend).facts())
    ops, _ = native_of(loaded)
    machine = detect(ops.isa)
    return {"native": native_digest(), "layout": layouts.LAYOUT, "cpu": machine.cpu, "features": sorted(machine.features), "isa": ops.isa,
            "cores": machine.cores}


def apply_policy(loaded: LoadedModel, policy: Policy, *, threads: bool = True, cache: bool = True) -> list[str]:
    """Run `loaded` as the policy says; returns what was applied, in words. `threads`, `cache`: whether it may change those (not when the user
    named them). Raises UsageError where the policy names what this build lacks, which its fingerprint rules out."""
    applied: list[str] = []
    if threads and policy.threads is not None and policy.threads != native_of(loaded)[0].threads:
        loaded.run_on(NativeOps(policy.threads, native_of(loaded)[0].isa))
        applied.append(f"{policy.threads} thread{'s' if policy.threads > 1 else ''}")
    if policy.kernels:
        apply_kernels(choosable(loaded), policy.kernels)
        buckets = sorted({choice.rows for choice in policy.kernels})
        applied.append(f"{len(policy.kernels)} kernel{'s' if len(policy.kernels) > 1 else ''} for up to {', '.join(map(str, buckets))} rows")
    if cache and policy.kv_cache is not None and policy.kv_cache != loaded.cache_spec.format:
        loaded.cache_spec = parse_cache(policy.kv_cache)
        applied.append(f"{policy.kv_cache} key-value cache")
    return applied


def apply_kernels(program: Choosable, choices: Sequence[KernelChoice]) -> None:
    """Choose kernels for every linear like those of the choices. Raises UsageError for a kernel or a bucket that is not there."""
    buckets = list(program.buckets)
    facts = [linear_facts(linear) for linear in program.linears()]
    for choice in choices:
        if choice.rows not in buckets:
            raise UsageError(f"there is no bucket of {choice.rows} rows", where="policy")
        for index, mine in enumerate(facts):
            if mine == choice.problem:
                try:
                    program.choose(index, buckets.index(choice.rows), choice.kernel)
                except ValueError as error:
                    raise UsageError(str(error), where="policy") from None


def linear_facts(linear: Mapping[str, Any]) -> dict[str, Any]:
    """What kernels go by, of one of a program's `linears()`, with names in place of the native module's numbers."""
    if "store" not in linear:
        return {name: value for name, value in linear.items() if name not in ("bytes", "logits")}
    kept = {name: linear[name] for name in ("n", "k", "table", "group", "zeros", "activation_group")}
    return {**kept, "weights": STORES[linear["store"]], "scale_type": SCALE_TYPES[linear["scale_type"]]}


def choosable(loaded: LoadedModel) -> Choosable:
    """The program, which has kernels to choose from. Raises UsageError for a backend whose programs have not."""
    if not hasattr(loaded.program, "choose"):
        raise UsageError(f"the backend {loaded.report.backend} has nothing to choose from", where="policy", remedy="use --backend native, or a GPU")
    return cast(Choosable, loaded.program)


def native_of(loaded: LoadedModel) -> tuple[NativeOps, NativeProgram]:
    """The parts that have choices. Raises UsageError for another backend."""
    if not isinstance(loaded.backend, NativeOps) or not isinstance(loaded.program, NativeProgram):
        raise UsageError(f"the backend {loaded.report.backend} has nothing to choose from", where="policy", remedy="use --backend native")
    return loaded.backend, loaded.program


@functools.cache
def native_digest() -> str:
    """Names the build of the native kernels: measurements of another build say nothing about this one."""
    return hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()[:16]


def _shown(facts: Mapping[str, Any]) -> str:
    if "table" not in facts:
        return f"{facts['n']} x {facts['k']} " + " ".join(f"{name} {value}" for name, value in facts.items() if name not in ("n", "k"))
    return f"{facts['n']} x {facts['k']} " + " ".join(
        [facts["weights"], *(["table"] if facts["table"] else []), f"group {facts['group']}", *(["zeros"] if facts["zeros"] else []),
         facts["scale_type"], f"activations {facts['activation_group']}"])


def _set(values: Sequence[int]) -> str:
    return "/".join(map(str, sorted(set(values))))
