"""Memory: what holds it, before anything is loaded, so that what does not fit can be examined, too.

fits? -> limit of a container -> weights -> key-value cache -> reserved for long contexts -> prefix cache -> the original beside it -> a pool too small
"""

from __future__ import annotations

from pathlib import Path

from .case import Case
from .complaint import RUNS, Complaint
from .findings import Report, Topic
from .surroundings import Surroundings
from .tree import disorders, walk


def examine(path: Path, complaint: Complaint = Complaint(), surroundings: Surroundings | None = None) -> Report:  # noqa: B008  # it is frozen
    """Raises what opening the model raises."""
    return walk("memory", Case(path, complaint, surroundings))


TOPIC = Topic(examine, disorders("memory"), RUNS | {"against", "users", "context", "shadow", "kv_memory_mb", "max_batch", "prefix_cache"})
