"""Policy: whether what `octavo tune` measured is of this model, this machine and this build."""

from __future__ import annotations

from ....loading import fingerprint
from ....policy import find, policy_path
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

STALE = Disorder("stale_policy", "error", "the policy was measured for something else and is not used", "measure again")
ABSENT = Disorder("no_policy", "warning", "there is no policy for this model and precision in the folder: defaults run", "measure one")


def look(case: Case) -> Answer:
    folder = case.complaint.policy_dir
    if folder is None:
        raise NotAskedError("no policies are used; `octavo tune` measures one, --policy-dir names their folder")
    path = policy_path(folder.expanduser(), case.loaded.name, str(case.loaded.plan))
    policy, reason = find(path, fingerprint(case.loaded))
    if policy is not None:
        return Answer(f"of {policy.made}, and it fits")
    return Answer(reason, ((STALE if path.exists() else ABSENT)(path.name, reason, case.command("tune")),))


CAUSE = Cause(70, "does the measured policy fit?", look, (STALE, ABSENT), unless=("reference_backend",))
