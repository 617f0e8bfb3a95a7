"""Doctor: examines what is sick and says what is wrong, with evidence and what to do about it.

A topic is a file here that ends in `TOPIC` (what `octavo doctor TOPIC PATH` examines). The one for checkpoints runs the files of `checks/`;
those for accuracy, speed and memory walk a decision tree, whose questions are the files of `causes/TOPIC/`.
"""

from __future__ import annotations

from ..registry import discover
from .complaint import Complaint
from .findings import SEVERITIES, Asked, Disorder, Finding, Report, Topic

__all__ = ["SEVERITIES", "Asked", "Complaint", "Disorder", "Finding", "Report", "Topic", "topics"]


def topics() -> dict[str, Topic]:
    """What can be examined, by name."""
    return discover(__name__, "TOPIC")
