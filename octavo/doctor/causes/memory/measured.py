"""Measured: where it fits, the model is loaded and computes a prompt, and the process is asked what it holds."""

from __future__ import annotations

from ....cache import PAGE
from ....loading import resident
from ....workloads import ROWS, prefill
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

MORE, SLACK = 1.25, 64_000_000  # times what was foreseen, and bytes of libraries that come with the first model, that are no news
LARGE = 0.25                    # of what the model brings
HOLDS_MORE = Disorder("more_than_foreseen", "warning", "the process holds more than the shapes of the weights say",
                      "start it a second time: what was quantized is then mapped from its kept copy instead of made")
BUFFERS = Disorder("step_buffers_hold", "warning", "the buffers of a step hold much of the memory",
                   "fewer rows in a step: prompts are computed in smaller chunks")


def look(case: Case) -> Answer:
    found, backend = case.holders, case.complaint.backend
    if backend != "native":
        raise NotAskedError(f"the {backend} backend holds other arrays than a server's")
    before = resident()
    loaded = case.loaded
    after = resident()
    rows = min(ROWS, loaded.max_model_len - 1)
    for _ in prefill(loaded, rows):
        computed = resident()  # while the engine still holds its buffers and pages
    pages = (-(-(rows + 1) // PAGE)) * PAGE * case.plans.report.kv_bytes_per_token
    grown, foreseen, buffers = after - before, found.weights + found.tables, max(0, computed - after - pages)
    case.facts["measured MB"] = round(grown / 1e6, 1)
    line = (f"loading it took {grown / 1e6:.1f} MB, {foreseen / 1e6:.1f} were foreseen for weights and tables; buffers of a step of {rows} rows "
            f"{buffers / 1e6:.1f} MB")
    findings = []
    if grown > MORE * foreseen + SLACK:
        findings.append(HOLDS_MORE("process", line))
    if buffers > LARGE * max(found.total - found.base, 1) and buffers > case.surroundings.machine.memory_available / 20:
        findings.append(BUFFERS("buffers", line, case.command(max_batch_tokens=ROWS // 4)))
    return Answer(line, tuple(findings))


CAUSE = Cause(15, "does it hold what was foreseen?", look, (HOLDS_MORE, BUFFERS), unless=("does_not_fit",))
