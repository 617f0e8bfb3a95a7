"""Damage: whether the files themselves are sound, by the checks of `octavo doctor checkpoint`."""

from __future__ import annotations

import shlex
from pathlib import Path

from ...case import Case
from ...checkpoint import examine
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

DAMAGED = Disorder("damaged_checkpoint", "error", "the files of the model are damaged or contradict each other",
                   "what `octavo doctor checkpoint` says of each finding")


def look(case: Case) -> Answer:
    path = Path(case.model).expanduser()
    if not path.exists():
        raise NotAskedError("a model of the hub is examined where it lies: octavo doctor checkpoint FOLDER")
    report = examine(path)
    errors = [finding for finding in report.findings if finding.disorder.severity == "error"]
    if not errors:
        return Answer("yes")
    first = errors[0]
    evidence = f"{len(errors)} error{'s' if len(errors) > 1 else ''}, the first: {first.disorder.what}: {first.evidence}"
    return Answer("no", (DAMAGED(first.tensor, evidence, shlex.join(["octavo", "doctor", "checkpoint", case.model])),))


CAUSE = Cause(5, "are the files sound?", look, (DAMAGED,))
