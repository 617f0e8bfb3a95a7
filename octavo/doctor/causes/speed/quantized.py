"""Quantized: whether the weights that run are quantized at all, whatever the model is called."""

from __future__ import annotations

from ....schemes import parse_tensor
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

MOST = 0.5  # of the weights' bytes that may be in 16 bits and more before the model counts as unquantized
NOT_QUANTIZED = Disorder("not_quantized", "error", "the weights are not quantized: each token reads as many bytes as before",
                         "ask for a precision, or serve the folder that was quantized")


def look(case: Case) -> Answer:
    runs = case.loaded.report.runs
    total = sum(one.bytes for one in runs)
    plain = sum(one.bytes for one in runs if not parse_tensor(one.asked, "weight").quantized)
    bits = 8 * total / max(1, sum(weight.n * weight.k for weight in case.loaded.bound.weights.values()))
    line = f"{1 - plain / total:.0%} of {total / 1e6:.1f} MB of weights are quantized, {bits:.1f} bits per weight in memory: " + "; ".join(map(str, runs))
    if plain <= MOST * total:
        return Answer(line)
    return Answer(line, (NOT_QUANTIZED(case.loaded.plan.short, f"{line} ({case.loaded.report.reason})", case.command(quantization="4bit")),))


CAUSE = Cause(10, "is it really quantized?", look, (NOT_QUANTIZED,))
