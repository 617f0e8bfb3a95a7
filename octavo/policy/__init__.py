"""Policy: how a model runs here: which backend can, and what `octavo tune` measured to be fastest on this machine."""

from __future__ import annotations

from ._dispatch import Candidate, Dispatch, shown
from ._files import find, policy_path, save
from ._policy import Gain, KernelChoice, Policy, difference

__all__ = ["Candidate", "Dispatch", "Gain", "KernelChoice", "Policy", "difference", "find", "policy_path", "save", "shown"]
