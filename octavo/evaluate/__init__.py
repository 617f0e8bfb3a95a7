"""evaluate: how well a model predicts a text, and what it has lost against the one that it was made of."""

from __future__ import annotations

from ..quality.parts import PartLoss, kl_by_part
from .long import LongContext, long_context
from .measure import Evaluation, Evidence, evaluate, evaluate_tasks

__all__ = ["Evaluation", "Evidence", "LongContext", "PartLoss", "evaluate", "evaluate_tasks", "kl_by_part", "long_context"]
