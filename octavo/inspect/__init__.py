"""inspect: what a checkpoint is, in numbers and words, without reading its weights; and which engines load it."""

from __future__ import annotations

from ._facts import Facts, facts_of
from ._verdicts import Verdict, verdicts

__all__ = ["Facts", "Verdict", "facts_of", "verdicts"]
