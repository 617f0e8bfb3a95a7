"""Second: the original in memory beside the model, for shadow checking, for comparing, or for the receipt."""

from __future__ import annotations

from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

LARGE = 0.25  # of what the model brings
HELD = Disorder("original_held", "warning", "the original lies in memory beside the model, and is larger than it",
                "check requests in another process or at times (--shadow-share 0, no --compare); the receipt can be measured before (octavo evaluate)")


def look(case: Case) -> Answer:
    found = case.holders
    if not case.complaint.shadow:
        raise NotAskedError("the server keeps no second model (say --shadow where it runs with --shadow-share or --compare)")
    line = f"the original {found.original / 1e6:.1f} MB beside {found.weights / 1e6:.1f} MB"
    command = case.command(shadow_share=0, receipt="off")
    return Answer(line, (HELD(case.complaint.against or case.model, line, command),) if found.share("original") > LARGE else ())


CAUSE = Cause(70, "is there a second model?", look, (HELD,))
