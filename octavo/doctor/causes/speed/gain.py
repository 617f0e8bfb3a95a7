"""Gain: the model and its original decode in turn, so that what else happens on the machine meets both."""

from __future__ import annotations

from statistics import median

from ....workloads import decode
from ...case import PROMPT, STEPS, WARM, Case
from ...findings import Disorder
from ...tree import Answer, Cause

TURNS = 3
LEAST = 1.1  # times as fast
NO_GAIN = Disorder("no_gain", "warning", "it decodes hardly faster than its original",
                   "the findings beside this one say why; where there are none, octavo trace MODEL")


def look(case: Case) -> Answer:
    models = (case.original, case.loaded)
    rates: tuple[list[float], list[float]] = ([], [])
    users = min(case.complaint.users, 16)
    for _ in range(TURNS):
        for model, found in zip(models, rates, strict=True):
            context = max(1, min(PROMPT, model.max_model_len - STEPS - WARM - users - 2))
            steps = decode(model, users, context, STEPS + WARM)[WARM:]
            found.append(users / median(step.seconds for step in steps))
    theirs, ours = (median(found) for found in rates)
    line = (f"{ours:.4g} tokens/s, the original {theirs:.4g}: {ours / theirs:.2f} times as fast (medians of {TURNS} turns; "
            f"{min(a / b for a, b in zip(rates[1], rates[0], strict=True)):.2f} to {max(a / b for a, b in zip(rates[1], rates[0], strict=True)):.2f})")
    return Answer(line, (NO_GAIN("", line),) if ours < LEAST * theirs else ())


CAUSE = Cause(90, "is it faster than its original?", look, (NO_GAIN,), unless=("reference_backend", "not_quantized"))
