"""Accuracy: why answers got worse. First what has nothing to do with precision, then how much was lost, and where.

damaged files -> tokenizer -> chat template -> loss against the original -> inputs -> which layers -> key-value cache -> calibration text against traffic
"""

from __future__ import annotations

from pathlib import Path

from .case import Case
from .complaint import RUNS, Complaint
from .findings import Report, Topic
from .surroundings import Surroundings
from .tree import disorders, walk


def examine(path: Path, complaint: Complaint = Complaint(), surroundings: Surroundings | None = None) -> Report:  # noqa: B008  # it is frozen
    """Raises what loading the model raises."""
    return walk("accuracy", Case(path, complaint, surroundings))


TOPIC = Topic(examine, disorders("accuracy"), RUNS | {"against", "data", "traffic"})
