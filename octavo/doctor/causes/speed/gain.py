"""Gain: whether the model decodes faster than its original."""

from __future__ import annotations

from statistics import median

from ...case import Case
from ...findings import Disorder
from ...race import race
from ...tree import Answer, Cause

LEAST = 1.1  # times as fast
NO_GAIN = Disorder("no_gain", "error", "it decodes hardly faster than its original",
                   "the findings beside this one say why; where there are none, octavo trace MODEL")


def look(case: Case) -> Answer:
    found = race(case.original, case.loaded, case.users, case.complaint.context)
    line = f"{median(found.ours):.4g} tokens/s, the original {median(found.theirs):.4g}: {found}"
    return Answer(line, (NO_GAIN("", line, case.command("trace")),) if found.times < LEAST else ())


CAUSE = Cause(90, "is it faster than its original?", look, (NO_GAIN,), unless=("reference_backend", "not_quantized"))
