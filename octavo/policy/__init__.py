"""Policy: how a model runs here: which backend can, and what `octavo tune` measured to be fastest on this machine."""

from __future__ import annotations

from ._dispatch import Candidate, Dispatch, shown

__all__ = ["Candidate", "Dispatch", "shown"]
