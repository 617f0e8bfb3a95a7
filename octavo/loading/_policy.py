"""A measured policy and a loaded model: what the policy depends on, and putting it to use."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__, _native, layouts
from ..errors import UsageError
from ..kernels.native import NativeOps, NativeProgram
from ..machine import detect
from ..policy import KernelChoice, Policy
from ..schemes import parse_cache
from ._model import LoadedModel

STORES = {number: name for name, number in layouts.STORES.items()}
SCALE_TYPES = {number: name for name, number in layouts.SCALE_TYPES.items()}


def fingerprint(loaded: LoadedModel) -> dict[str, Any]:
    """What measurements of this model depend on, as JSON. Raises UsageError for a backend that has no choices."""
    ops, program = native_of(loaded)
    machine = detect(ops.isa)
    kinds = Counter(_shown(linear_facts(linear)) for linear in program.linears())
    return {
        "octavo": __version__, "native": native_digest(), "layout": layouts.LAYOUT, "cpu": machine.cpu, "features": sorted(machine.features),
        "isa": ops.isa, "cores": machine.cores, "model": str(loaded.report.model_type), "scheme": str(loaded.plan), "cache": loaded.cache_spec.format,
        "vocabulary": loaded.vocab_size, "attention": f"{len(loaded.kv_heads)} layers, key heads {_set(loaded.kv_heads)} of {_set(loaded.head_dims)}",
        "linears": [f"{count} x {kind}" for kind, count in kinds.items()],
    }


def apply_policy(loaded: LoadedModel, policy: Policy, *, threads: bool = True, cache: bool = True) -> list[str]:
    """Run `loaded` as the policy says; returns what was applied, in words. `threads`, `cache`: whether it may change those (not when the user
    named them). Raises UsageError where the policy names what this build lacks, which its fingerprint rules out."""
    applied: list[str] = []
    ops, _ = native_of(loaded)
    if threads and policy.threads is not None and policy.threads != ops.threads:
        loaded.run_on(NativeOps(policy.threads, ops.isa))
        applied.append(f"{policy.threads} thread{'s' if policy.threads > 1 else ''}")
    if policy.kernels:
        _, program = native_of(loaded)
        apply_kernels(program, policy.kernels)
        buckets = sorted({choice.rows for choice in policy.kernels})
        applied.append(f"{len(policy.kernels)} kernel{'s' if len(policy.kernels) > 1 else ''} for up to {', '.join(map(str, buckets))} rows")
    if cache and policy.kv_cache is not None and policy.kv_cache != loaded.cache_spec.format:
        loaded.cache_spec = parse_cache(policy.kv_cache)
        applied.append(f"{policy.kv_cache} key-value cache")
    return applied


def apply_kernels(program: NativeProgram, choices: Sequence[KernelChoice]) -> None:
    """Choose kernels for every linear like those of the choices. Raises UsageError for a kernel or a bucket that is not there."""
    buckets = _native.row_buckets()
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
    """What kernels go by, of one of `NativeProgram.linears()`, with names in place of the native module's numbers."""
    kept = {name: linear[name] for name in ("n", "k", "table", "group", "zeros", "activation_group")}
    return {**kept, "weights": STORES[linear["store"]], "scale_type": SCALE_TYPES[linear["scale_type"]]}


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
    return f"{facts['n']} x {facts['k']} " + " ".join(
        [facts["weights"], *(["table"] if facts["table"] else []), f"group {facts['group']}", *(["zeros"] if facts["zeros"] else []),
         facts["scale_type"], f"activations {facts['activation_group']}"])


def _set(values: Sequence[int]) -> str:
    return "/".join(map(str, sorted(set(values))))
