"""Emulated: a precision that no kernel here computes in is kept in 16 bits: right numbers, no gain."""

from __future__ import annotations

from ....schemes import parse_tensor
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

EMULATED = Disorder("emulated_format", "error", "weights lie in memory in 16 bits because no kernel here reads their format: right numbers, no gain",
                    "a precision that runs natively here, or hardware that has this one (octavo advise)")
FLOAT_INPUTS = Disorder("inputs_not_as_asked", "warning", "inputs are computed in 16 bits though fewer were asked for: the integer units of the CPU stay idle",
                        "integer inputs with integer weights in groups of a multiple of 32 (W4g32A8, W8A8)")


def look(case: Case) -> Answer:
    asked = case.loaded.plan.default.activation
    found, lines = [], []
    emulated = [one for one in case.loaded.report.runs if parse_tensor(one.asked, "weight").quantized and not parse_tensor(one.kept, "weight").quantized]
    notes = "; ".join(case.loaded.report.notes)
    if emulated:
        lines.append("; ".join(map(str, emulated)))
        found.append(EMULATED(f"W{emulated[0].asked}", notes or lines[0], case.command(quantization="4bit")))
    ours = [one for one in case.loaded.report.runs if parse_tensor(one.asked, "weight").quantized]
    if asked.quantized and ours and not parse_tensor(ours[0].activation, "activation").quantized:
        lines.append(f"inputs run as A{ours[0].activation}")
        found.append(FLOAT_INPUTS(case.loaded.plan.short, notes, case.command(quantization="W4g32A8")))
    return Answer("; ".join(lines) or "natively", tuple(found))


CAUSE = Cause(20, "does the hardware run it natively?", look, (EMULATED, FLOAT_INPUTS), unless=("not_quantized",))
