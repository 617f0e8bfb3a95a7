"""What the verbs that use a measured policy share: where it lies, finding it, searching for it, and saying what became of it."""

# No `from __future__ import annotations`: see _model.py.
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ._model import ModelOptions

if TYPE_CHECKING:
    from ..loading import LoadedModel
    from ..policy import Policy


@dataclass
class PolicyOptions(ModelOptions):
    _: KW_ONLY

    policy_dir: Path | None = None
    """Run as `octavo tune` found to be fastest: the folder of its policies."""


ENGINE = {"max_batch_tokens": "rows a step", "max_batch": "users a step"}


def use_policy(options: PolicyOptions, loaded: "LoadedModel", search: Callable[[Path], None] | None = None,
               engine: Sequence[str] = tuple(ENGINE)) -> "tuple[Policy | None, str]":
    """Apply the policy of the folder that the options name; (what is used, what to tell in one line). ("" without a folder.)

    What the user named (threads, the format of the cache) stays. `search` is called to write a policy where there is none to use. `engine`: the
    settings of the policy that the caller will give to its engine.
    """
    from ..loading import apply_policy, fingerprint
    from ..policy import find, policy_path
    from ..settings import read_settings

    if options.policy_dir is None:
        return None, ""
    folder = options.policy_dir.expanduser()
    path, facts = policy_path(folder, loaded.name, str(loaded.plan)), fingerprint(loaded)
    policy, reason = find(path, facts)
    if policy is None and search is not None:
        search(folder)
        policy, reason = find(path, facts)
    if policy is None:
        return None, f"no policy is used, the defaults are: {reason}; `octavo tune` writes one"
    fixed = (options.threads or read_settings().threads) is not None
    applied = apply_policy(loaded, policy, threads=not fixed, cache=options.kv_cache is None)
    applied += [f"{value} {ENGINE[name]}" for name in engine if (value := policy.settings.get(name)) is not None]
    loaded.report.policy = f"policy of {policy.made}: {', '.join(applied) or 'the defaults are the fastest'}"
    return policy, loaded.report.policy
