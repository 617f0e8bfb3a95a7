"""`octavo explain NAME`: what a precision name means, what it costs, and what of it runs on this machine."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from ._command import Command

if TYPE_CHECKING:
    from ..machine import Machine
    from ..policy import Candidate
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
    from ..kernels.native import NativeOps
    from ..machine import detect

    found = explain(options.name, detect(), NativeOps(threads=1))
    print(json.dumps(found, indent=2) if options.json else _text(found))


def explain(name: str, machine: Machine, backend: Candidate) -> dict[str, Any]:
    """Everything about a name as JSON-able data; `backend` says what it can run.

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
        "cache": _described(scheme),
        "bits_per_weight": round(scheme.weight.bits_per_weight((LAYER, LAYER)), 4),
        "bits_per_cached_value": round(_cached_bits(scheme), 4),
        "overrides": [[pattern, None if one is None else str(one)] for pattern, one in choice.plan.overrides],
        "machine": machine.isa,
        "runs": {"linear": _linear(scheme, backend), "cache": _cache(scheme, backend)},
    }


def _linear(scheme: Scheme, backend: Candidate) -> dict[str, Any]:
    """{"answer": "native", "emulated" or "no", "why", "bits_in_memory"}, by the rule that loading follows for every weight."""
    from .. import layouts
    from ..kernels.op import Problem
    from ..loading import ways

    refusals = []
    for kept, activation, note in ways(scheme.weight, scheme.activation, known=True):
        refusal = backend.supports(Problem("linear", LAYER, LAYER, weight=kept, activation=activation))
        if refusal is not None:
            refusals.append(refusal)
            continue
        memory = 8 * layouts.describe(kept, LAYER, LAYER).nbytes / LAYER**2 if layouts.why_not(kept) is None else None
        return {"answer": "emulated" if note else "native", "why": f"{note} ({refusals[0]})" if note else "", "bits_in_memory": memory}
    return {"answer": "no", "why": "; ".join(dict.fromkeys(refusals)), "bits_in_memory": None}


def _cache(scheme: Scheme, backend: Candidate) -> dict[str, Any]:
    from ..kernels.op import Problem

    refusals = [backend.supports(Problem("attention", cache=spec, head_dim=HEAD)) for spec in (scheme.cache, scheme.cache_values)]
    why = "; ".join(dict.fromkeys(refusal for refusal in refusals if refusal is not None))
    return {"answer": "no", "why": why} if why else {"answer": "native", "why": ""}


def _described(scheme: Scheme) -> str:
    from ..schemes import describe

    if scheme.values is None:
        return describe(scheme.cache, "cache")
    return f"keys {describe(scheme.cache, 'cache')}; values {describe(scheme.values, 'cache')}"


def _cached_bits(scheme: Scheme) -> float:
    """Bits per number of keys and values, scales included, as they lie in the pool (or would)."""
    from ..cache import PAGE, KVPool
    from ..kernels.op import CACHE_FORMATS
    from ..schemes import cache_of

    pair = (scheme.cache, scheme.cache_values)
    if any(spec.format not in CACHE_FORMATS for spec in pair):
        return sum(spec.bits_per_weight((LAYER, HEAD)) for spec in pair) / 2
    return 8 * KVPool.bytes_per_page([1], [HEAD], cache_of([pair])) / (2 * PAGE * HEAD)


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
    memory = found["runs"]["linear"]["bits_in_memory"]
    row("in memory", f"{memory:.4g} bits per weight, in the layout of the kernels" if memory else "")
    return "\n".join(lines)


COMMAND = Command("explain", Options, run)
