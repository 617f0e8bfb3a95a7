"""Weights: whether they are what holds the memory, and whether they are as small as they were meant to be."""

from __future__ import annotations

from ....schemes import parse_tensor
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

LARGE = 0.3  # of what the model brings
UNQUANTIZED = Disorder("weights_unquantized", "warning", "unquantized weights hold most of the memory", "serve it in fewer bits")
WIDENED = Disorder("weights_widened", "warning", "weights of few bits lie in memory in 16: no kernel here reads their format",
                   "a precision that runs natively here")


def look(case: Case) -> Answer:
    found, runs = case.holders, case.plans.report.runs
    share = found.share("weights")
    line = f"{found.weights / 1e6:.1f} MB, {share:.0%}: " + "; ".join(map(str, runs))
    if share < LARGE:
        return Answer(line)
    asked = [one for one in runs if parse_tensor(one.asked, "weight").quantized]
    widened = sum(one.bytes for one in asked if not parse_tensor(one.kept, "weight").quantized)
    if widened > found.weights / 2:
        return Answer(line, (WIDENED(asked[0].asked, line, case.command(quantization="4bit")),))
    if sum(one.bytes for one in asked) >= found.weights / 2:
        return Answer(line)
    smaller = case.foresee(case.model, quantization="4bit").report.predicted["weights"]
    return Answer(line, (UNQUANTIZED(case.plans.report.scheme, f"{line}; in 4 bits {smaller / 1e6:.1f} MB", case.command(quantization="4bit")),))


CAUSE = Cause(30, "do the weights hold it?", look, (UNQUANTIZED, WIDENED))
