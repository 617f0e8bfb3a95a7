"""`octavo explain NAME`: what a precision name means, what it costs, and what of it runs on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from ._command import Command

if TYPE_CHECKING:
    from ..kernels.op import Problem
    from ..machine import Machine
    from ..schemes import Scheme

LAYER = 4096  # inputs and outputs of the layer that bits are counted for: scales of rows weigh almost nothing
HEAD = 64  # a head's width


@dataclass
class Options:
    name: str
    """A precision: W4g64A8, fp8_block, Q4_K_M, 8bit ..."""

    _: KW_ONLY

    json: bool = False
    """Print JSON."""


def run(options: Options) -> None:
    """What a precision name means, bits per weight, and what runs here."""
    from ..kernels import reference

    found = explain(options.name, _machine(), {"native": _native(), "reference": reference.ReferenceOps()})
    print(json.dumps(found, indent=2) if options.json else _text(found))


def explain(name: str, machine: Machine, backends: Mapping[str, Any]) -> dict[str, Any]:
    """Everything about a name as JSON-able data. `backends` maps "native" and "reference" to an Ops, or to the reason why it is missing.

    Raises SchemeError for a name that cannot be read.
    """
    from ..schemes import NAMES, choose, describe, normalize

    choice = choose(name, machine)
    scheme = choice.plan.default
    known = NAMES.get(normalize(name))
    return {
        "name": name,
        "canonical": str(scheme),
        "plan": str(choice.plan),
        "reason": choice.reason,
        "source": known.source if known else "",
        "note": known.note if known else "",
        "weight": describe(scheme.weight, "weight"),
        "activation": describe(scheme.activation, "activation"),
        "cache": describe(scheme.cache, "cache"),
        "bits_per_weight": round(scheme.weight.bits_per_weight((LAYER, LAYER)), 4),
        "bits_per_cached_value": round(scheme.cache.bits_per_weight((LAYER, HEAD)), 4),
        "overrides": [[pattern, None if one is None else str(one)] for pattern, one in choice.plan.overrides],
        "machine": machine.isa,
        "runs": {part: _verdict(problem, backends) for part, problem in _problems(scheme).items()},
    }


def _problems(scheme: Scheme) -> dict[str, Problem]:
    from ..kernels.op import Problem

    return {
        "linear": Problem("linear", LAYER, LAYER, weight=scheme.weight, activation=scheme.activation),
        "cache": Problem("attention", cache=scheme.cache, head_dim=HEAD),
    }


def _verdict(problem: Problem, backends: Mapping[str, Any]) -> dict[str, str]:
    """{"answer": "native", "emulated" or "no", "why": reason}. Emulated: only the reference backend, in float64, computes it."""
    native = backends["native"]
    refusal = native if isinstance(native, str) else native.supports(problem)
    if refusal is None:
        return {"answer": "native", "why": ""}
    slow = backends["reference"].supports(problem)
    if slow is None:
        return {"answer": "emulated", "why": f"reference backend only (--backend reference, slow): {refusal}"}
    return {"answer": "no", "why": slow}


def _text(found: dict[str, Any]) -> str:
    lines = [found["name"] if found["name"] == found["canonical"] else f"{found['name']} = {found['canonical']}"]

    def row(label: str, value: str) -> None:
        if value:
            lines.append(f"  {label:<12} {value}")

    row("name of", found["source"])
    row("note", found["note"])
    row("why", "" if found["reason"].startswith("asked for") else found["reason"])
    row("weights", f"{found['weight']}: {found['bits_per_weight']:.4g} bits per weight, scales included")
    row("activations", found["activation"])
    row("KV cache", f"{found['cache']}: {found['bits_per_cached_value']:.4g} bits per value")
    for pattern, scheme in found["overrides"]:
        row("except", f"{pattern}: {scheme or 'kept as it is'}")
    lines.append(f"on this machine ({found['machine']})")
    for part, verdict in found["runs"].items():
        row({"linear": "linears", "cache": "KV cache"}[part], verdict["answer"] + (f": {verdict['why']}" if verdict["why"] else ""))
    return "\n".join(lines)


def _machine() -> Machine:
    from ..machine import detect

    return detect()


def _native() -> Any:
    """The native backend, or the sentence that says why it is missing."""
    try:
        from ..kernels.native import NativeOps

        return NativeOps(threads=1)
    except ImportError:
        return "the native kernels are not built (make build)"


COMMAND = Command("explain", Options, run)
