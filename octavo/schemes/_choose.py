"""The presets 32bit 16bit 8bit 4bit: which Scheme this machine runs best, and why."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import SchemeError
from ._names import PRESETS, normalize
from ._plan import PLANS, Plan, plan_text

if TYPE_CHECKING:
    from ..machine import Machine


MOST_SHOWN = 120  # characters of a name, in a reason


@dataclass(frozen=True)
class Choice:
    """A Plan, the sentence that says why, and the name that was asked for."""

    plan: Plan
    reason: str
    asked: str = ""


@dataclass(frozen=True)
class Rule:
    """What a preset means on hardware from `since` on (compute capability of a GPU; () for CPUs)."""

    preset: str
    since: tuple[int, int] | None  # None: CPUs
    name: str
    reason: str


# The first rule that fits wins: newest hardware first.
RULES = (
    Rule("32bit", None, "W32A32C32", "float32 throughout, as a reference"),
    Rule("16bit", None, "W16A16C16", "bfloat16 weights and cache, sums in float32"),
    Rule("8bit", None, "W8A8hC16", "CPUs multiply INT8 natively; INT8 weights and INT8 activations, rotated first so that one scale serves a row, stay "
                                   "within 1% of 16 bits' perplexity"),
    Rule("4bit", None, "W4g64A8g64C16", "CPUs have no 4-bit arithmetic but are limited by memory: 4-bit weights in groups of 64 are widened "
                                        "to INT8 on the way and meet INT8 activations with a scale per 64 values"),
    Rule("32bit", (0, 0), "W32A32C32", "float32 throughout, as a reference"),
    Rule("16bit", (0, 0), "W16A16C16", "bfloat16 throughout"),
    Rule("8bit", (8, 9), "Wfp8Afp8C16", "Ada, Hopper and Blackwell multiply FP8 natively"),
    Rule("8bit", (7, 5), "W8A8C16", "Turing and Ampere multiply INT8 natively and have no FP8"),
    Rule("8bit", (0, 0), "W8A16C16", "this GPU has neither INT8 nor FP8 matrix units: 8-bit weights save memory, arithmetic stays in 16 bits"),
    Rule("4bit", (10, 0), "Wnvfp4Anvfp4C16", "Blackwell multiplies FP4 natively"),
    Rule("4bit", (9, 0), "W4Afp8C16", "Hopper has no FP4: 4-bit weights meet FP8 activations"),
    Rule("4bit", (0, 0), "W4A16C16", "no FP4 before Blackwell: 4-bit weights are widened to 16 bits"),
)


def meaning_of_presets() -> str:
    """Changes when a preset, or a plan that has a name, comes to mean something else on some machine."""
    return hashlib.sha256(repr((RULES, PLANS)).encode()).hexdigest()[:16]


def choose(quantization: str, machine: Machine, capability: tuple[int, int] | None = None) -> Choice:
    """The Plan for a preset (32bit 16bit 8bit 4bit) or for any other name, with the reason.

    capability  compute capability of the GPU that will run the model; None when the CPU does, as in every backend there is today.
    Raises SchemeError for a name that cannot be read, or that the GPU cannot run; then it says what can.
    """
    preset = normalize(quantization)
    if preset not in PRESETS:
        plan = Plan.parse(plan_text(quantization))
        if capability is not None and (refusal := refuse(plan, capability)) is not None:
            raise refusal
        if preset in PLANS:
            return Choice(plan, PLANS[preset][1], quantization)
        named = quantization if len(quantization) <= MOST_SHOWN else f"{quantization[:MOST_SHOWN]} ..."  # a whole plan is no name
        return Choice(plan, f"asked for by name: {named}", quantization)
    for rule in RULES:
        if rule.preset == preset and (rule.since is None if capability is None else rule.since is not None and rule.since <= capability):
            isa = getattr(machine, "isa", "")
            where = f" (kernels: {isa})" if capability is None and isa else ""
            return Choice(Plan.parse(rule.name), rule.reason + where, quantization)
    raise SchemeError("no rule for this machine", where=f"precision {quantization!r}", remedy="name a scheme, such as W8A16")


# Least compute capability whose matrix units take activations of a format, and what to take instead.
ACTIVATIONS_SINCE = {
    "fp8e4m3": ((8, 9), "FP8 arithmetic starts with Ada", "W8A8", "W8A16"),
    "fp8e5m2": ((8, 9), "FP8 arithmetic starts with Ada", "W8A8", "W8A16"),
    "int8": ((7, 5), "INT8 matrix units start with Turing", "W8A16", "W8A16"),
    "nvfp4": ((10, 0), "FP4 arithmetic starts with Blackwell", "Wnvfp4A16", "Wnvfp4A16"),
    "mxfp4": ((10, 0), "FP4 arithmetic starts with Blackwell", "Wmxfp4A16", "Wmxfp4A16"),
    "mxfp8": ((10, 0), "MXFP8 arithmetic starts with Blackwell", "Wfp8Afp8", "W8A16"),
}


def refuse(plan: Plan, capability: tuple[int, int]) -> SchemeError | None:
    """The error that says why a GPU of this capability cannot run the plan and what it can, or None."""
    for scheme in (plan.default, *(s for _, s in plan.overrides if s is not None)):
        rule = ACTIVATIONS_SINCE.get(scheme.activation.format)
        if rule is not None and capability < rule[0]:
            nearest = rule[2] if capability >= (7, 5) else rule[3]
            return SchemeError(f"this GPU (compute capability {capability[0]}.{capability[1]}) cannot: {rule[1]}", where=f"precision {scheme}",
                               remedy=f"the nearest that works here: {nearest}")
    return None
